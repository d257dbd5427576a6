"""Backbones and the models that devices train; the only package, with parts/peft, that uses transformers."""
