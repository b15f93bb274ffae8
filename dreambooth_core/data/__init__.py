"""Instance and class images: data gate, sampling, latent cache, batches."""
