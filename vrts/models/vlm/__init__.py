"""Models of transformers as policies: loading, forward passes, packing, saving."""
