"""Pretrained models: GGUF files, their weights and their tokenizers."""
