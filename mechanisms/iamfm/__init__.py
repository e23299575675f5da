"""IAMFM: one sponsorship configuration a period, found and priced on a token budget.

After "Incentive-Aware Multi-Fidelity Optimization for Generative Advertising in Large Language
Models" (arXiv 2604.06263), whose abstract was at hand and not its text. The platform evaluates
configurations by an LLM, noisily and at a cost in tokens, at several fidelities, and charges VCG
payments that it can afford to compute.

- `evaluations`, `method`: samples under a budget, and what every method of search is
- `configuration`, `reweighing`, `recorded`, `live`, `short`, `synthetic`: where samples come from
- `elimination`, `surrogate`, `baselines`: methods
- `exact`, `counterfactual`, `incentives`: VCG, payments on a budget, and what misreports gain
- `mechanism`: `iamfm-elimination` and `iamfm-model` in a market
"""
