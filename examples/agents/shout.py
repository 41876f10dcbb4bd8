class Shout:
    """Says it louder."""

    def run(self, text: str):
        for word in text.split():
            yield word.upper() + " "
