"""Hydra configuration: config.yaml and one folder a group, named after the noun; a file is named after the class or function."""
