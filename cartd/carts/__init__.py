"""What clients do with carts: submit, download and delete them."""
