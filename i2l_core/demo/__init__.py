"""The demo world: pictures whose every factor is known, and small honest models of them."""
