"""Instance and class images: the gate, generation, the latent cache, batches."""
