"""Where features and guidance come from: torch and transformers, no vLLM."""
