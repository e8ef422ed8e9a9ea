"""Whether all that a sweep wrote of a trial agrees (study, folder, W&B, Ray), and how it is made to agree again."""
