"""Operations on images: batched tensors, and OpenCV image by image."""
