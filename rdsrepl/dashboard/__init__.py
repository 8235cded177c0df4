"""``slot watch``: a pure state, a pure view, and one loop around them."""
