"""What is trained, and how it is merged back."""
