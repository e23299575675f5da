"""Training an LLM to write what an auction would choose: warm start, distillation, IRPO, online."""
