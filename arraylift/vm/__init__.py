"""Virtual machines as the daemons of the control path speak of them."""
