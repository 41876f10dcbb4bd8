"""Other systems' words for Covey's things."""
