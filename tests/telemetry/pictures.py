"""Pictures with words in them that no log may show."""

from __future__ import annotations

import base64
import io

from PIL import Image, PngImagePlugin


def picture(comment: str) -> str:
    """A PNG with a comment, as a data URL."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", comment)
    data = io.BytesIO()
    Image.new("RGB", (30, 30)).save(data, "PNG", pnginfo=text)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
