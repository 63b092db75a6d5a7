"""Converters of weights and pictures that package registries carry."""
