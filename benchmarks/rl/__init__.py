"""Exploration in reinforcement learning: bandits, value learning, intrinsic rewards, trust regions."""
