"""Backbones and the models that devices train; the home of transformers."""
