"""The command lines of the diffusers guide, on the stages and the loop of the pipeline."""
