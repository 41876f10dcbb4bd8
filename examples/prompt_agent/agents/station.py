class Station:
    """A weather station."""

    def weather(self, city: str) -> str:
        return f"sunny in {city}"
