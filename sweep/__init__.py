"""Hyperparameter sweeps of the joint tactile MAE: Ray Tune runs the trials, Optuna searches, W&B records."""
