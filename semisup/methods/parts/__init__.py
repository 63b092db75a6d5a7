"""What several methods share: crops, memories, ramps, k-means, priors."""
