"""Features of the patches of pictures, and the weights of the networks that compute them."""
