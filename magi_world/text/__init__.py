"""Prompts of MAGI-1 checkpoints: cleaning, tokens, special tokens, embeddings kept on disk."""
