"""A request's images, in data URLs and remote, become pixels and the one data URL that both sides get."""

from __future__ import annotations

from collections.abc import Sequence

from guardtrace_proxy.images.data_urls import check_count, decode_data_urls
from guardtrace_proxy.images.decode import ImageLimits
from guardtrace_proxy.images.fetch import ImageFetcher, is_remote
from guardtrace_proxy.images.held import HeldImages


async def resolve_images(images: Sequence[tuple[str, str]], limits: ImageLimits, fetcher: ImageFetcher) -> HeldImages:
    """Fetch what is remote, then decode all, given as (URL, field), under common limits.

    Raises:
        ImageError: one can't be fetched or taken, or all of them together can't.
    """
    check_count(images, limits)
    remote = [(url, field) for url, field in images if is_remote(url)]
    fetched = await fetcher.fetch(remote, limits) if remote else {}
    decoded = await decode_data_urls([(fetched.get(url, url), field) for url, field in images], limits)
    fetched_bytes = sum(map(len, fetched.values()))
    return HeldImages(decoded, [field for _, field in images], limits, fetched_bytes=fetched_bytes)
