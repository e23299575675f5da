"""The `training:` section of a scenario: how its Ad-LLM is made (`admarket train`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic import PositiveFloat as Positive
from pydantic import PositiveInt as Count

from market.sections import Section

Share = Annotated[float, Field(gt=0, lt=1)]


class StageSpec(Section):
    """Supervised training: demonstrations (`warm_start`) or distillation.

    Attributes:
        steps: optimiser steps.
        batch: requests a step.
        lr: highest learning rate.
    """

    steps: Count = 100
    batch: Count = 8
    lr: Positive = 5e-4


class IRPOSpec(Section):
    """Iterative reward-preference optimisation; see `mechanisms.llm_auction.training.irpo`.

    Attributes:
        epochs: T.
        deployed: requests answered in an epoch's first phase.
        viewers: users who see each of these replies, and click or do not.
        requests: requests sampled in its second phase.
        samples: K, replies sampled per request.
        margin: δ, by how much a loser's reward is lower.
        beta: β of DPO, in 1 per nat of log-ratio.
        likelihood: γ, weight of the winner's likelihood per token; 0 is the paper's.
        passes: times each preference is met in an epoch.
        batch: requests a step.
        lr: highest learning rate of an epoch.
        oracle: reward by the users' own click probabilities, without a pCTR model.
        pctr_epochs: passes of the pCTR model over the clicks of one deployment.
    """

    epochs: Count = 1
    deployed: Count = 160
    viewers: Count = 10
    requests: Count = 200
    samples: Annotated[int, Field(ge=2)] = 5
    margin: Annotated[float, Field(ge=0)] = 3.0
    beta: Positive = 0.1
    likelihood: Annotated[float, Field(ge=0)] = 1.0
    passes: Count = 1
    batch: Count = 8
    lr: Positive = 2e-4
    oracle: bool = False
    pctr_epochs: Count = 8


class OnlineSpec(Section):
    """Policy gradients from realised clicks; see `mechanisms.llm_auction.training.online`.

    Attributes:
        iterations: times the policy is deployed.
        requests: requests answered in an iteration.
        samples: K, replies to each.
        batch: requests a step.
        lr: learning rate, the same in all iterations.
        clip: how far a ratio of probabilities may go from 1.
        kl: weight of the divergence from where the stage started.
        expected: reward by click probabilities instead of clicks.
    """

    iterations: Count = 8
    requests: Count = 40
    samples: Annotated[int, Field(ge=2)] = 5
    batch: Count = 8
    lr: Positive = 2e-4
    clip: Positive = 0.2
    kl: Annotated[float, Field(ge=0)] = 0.02
    expected: bool = False


class RewardSpec(Section):
    """The response reward R: revenue at first price, less what is wrong with the reply.

    Attributes:
        user_weight: λ, what an extra ad or a broken marker costs, in the unit of bids.
        unfinished: units of that for a reply that breaks off.
    """

    user_weight: Annotated[float, Field(ge=0)] = 40.0
    unfinished: Annotated[float, Field(ge=0)] = 0.1


class TrainingSpec(Section):
    """How the scenario's Ad-LLM is trained.

    The requests to train on ask the catalog's queries, of all categories, that the scenario's
    market does not ask; `held_out` of them are kept for evaluation, beside the market's own. All
    the catalog's ads may be candidates.

    Attributes:
        layout: of the prompt, `full` or `compact`.
        bids: how bids stand in it, see `mechanisms.llm_auction.prompt.PromptStyle`.
        ordered: list ads by falling bid.
        method: `lora`, or `full` for all weights.
        rank: r of LoRA.
        alpha: α of LoRA.
        first_layer: LoRA adapts the layers from here on.
        temperature: at which the Ad-LLM is trained and sampled.
        sentences: a reply ends with this many, that of the mention included.
        max_ads: ads a reply may show free of penalty.
        max_tokens: limit of a reply, mentions on top.
        held_out: queries kept for evaluation.
        pool_tokens: limit of the recorded pool's replies: lower, so that what is taught is well
            within the limit.
        pool_replies: replies by guided insertion per request, for demonstrations and distillation.
        pool_beta: β of the ideal rule that is distilled, in units of bids 1..100 per nat.
        prose: how much a token counts in supervised training that decides nothing about ads.
        warm_start: demonstrations.
        distill: the ideal rule.
        irpo: preferences among sampled replies.
        online: policy gradients.
        reward: what training is after.
    """

    layout: Literal["full", "compact"] = "compact"
    bids: Literal["digits", "ranks", "tally", "embedding"] = "tally"
    ordered: bool = False
    method: Literal["lora", "full"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0
    first_layer: Annotated[int, Field(ge=0)] = 10
    temperature: Positive = 0.5
    sentences: Annotated[int, Field(ge=2)] = 3
    max_ads: Count = 1
    max_tokens: Annotated[int, Field(ge=16)] = 80
    held_out: Count = 32
    pool_tokens: Annotated[int, Field(ge=16)] = 48
    pool_replies: Annotated[int, Field(ge=8)] = 12
    pool_beta: Positive = 1.5
    prose: Annotated[float, Field(ge=0, le=1)] = 0.1
    warm_start: StageSpec = StageSpec()
    distill: StageSpec = StageSpec(steps=200)
    irpo: IRPOSpec = IRPOSpec()
    online: OnlineSpec = OnlineSpec()
    reward: RewardSpec = RewardSpec()
