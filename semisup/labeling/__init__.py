"""A person's next hour of labeling: which images to label next, which labels are wrong, which images are foreign."""
