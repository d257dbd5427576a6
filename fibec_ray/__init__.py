"""fibec_ray: federated LoRA fine-tuning of language models, simulated on Ray."""
