"""Characters of other scripts that look like the letters of the layout's labels, or like a colon.

From Unicode's confusables (UTS 39) as far as no compatibility form folds them already, with small capitals, strokes
and a few Greek and Cyrillic letters more.
"""

from __future__ import annotations

_LETTERS = {
    "a": "ɐɑΑαАаᎪᗅᴀ⍺ꓮ𐊠𖽀",
    "c": "ƈȼСсᏟᴄⲤⲥꓚꞓꮯ𐊢𐌂𐐕𐐽𐔜𑣩𑣲🝌",
    "d": "đɖɗԁᎠᏧᑯᗞᗪᴅᵭꓒꓓ",
    "e": "ǝɇɛΕεЕеэєҽᎬᴇ℮⋿ⴹꓰꬲ𐊆𑢦𑢮",
    "g": "ƍǥɠɡɢԌցᏀᏳᶃꓖ",
    "h": "ħɦʜΗНнһհᎻᏂᕼⲎꓧ𐋏",
    "i": "ıɨɩɪιіӏᎥᴉ⍳ꙇꭵ𑣃",
    "j": "ɉʝͿϳЈјᎫᒍᴊꓙꞲ",
    "k": "ƙΚκКкᏦᛕᴋⲔꓗ𐔘",
    "l": "łƖƚǀɫʟΙІӀ۱Ꮮᒪᛁ∣⏽ⲒⳐⵏꓡꓲ𐊊𐌉𐌠𐐛𐔦𑢣𑢲𖼖𖼨𝈪",
    "m": "ɱΜϺМмᎷᗰᛖᴍⲘꓟ𐊰𐌑",
    "n": "ƞɲɴΝηπипոռⲚꓠ𐔓",
    "o": "øɵΟοσОоՕօ۵०০੦૦ଠ୦௦ం౦ಂ೦ംഠ൦ං๐໐ဝ၀ჿዐᴏᴑⲞⲟⵔ〇ꓳꬽ𐊒𐊫𐐄𐐬𐓂𐓪𐔖𑓐𑢵𑣈𑣗𑣠",
    "p": "ƥΡρРрᏢᑭᴘ⍴Ⲣⲣꓑ𐊕",
    "q": "ɋԛգզⵕ",
    "r": "ƦɍɼɽʀгяᎡᏒᖇᴦⲅꓣꭇꭈꮁ𐒴𖼵𝈖",
    "s": "ƽʂЅѕՏᏕᏚꓢꜱꮪ𐊖𐐠𐑈𑣁𖼺",
    "t": "ŧƭʈΤτТтᎢᴛ⊤⟙Ⲧꓔ𐊗𐊱𐌕𑢼𖼊🝨",
    "u": "ʉʋμυцՍսሀᏌᑌᴜ∪⋃ꓴꞟꭎꭒ𐓎𐓶𑢸𑣘𖽂",
    "y": "ƴɏɣʏΥγУуҮүყᎩᎽᶌỿⲨꓬꭚ𐊲𑢤𑣜𖽃",
}
_COLONS = (
    "\u02d0\u02f8\u0589\u05c3\u0703\u0704\u0903\u0a83\u1361\u16ec\u1803\u1809\u205a\u205d\u2236\u2237\u2982\ua4fd\ua789"
)
_EMBLEMS = (0x1F130, 0x1F150, 0x1F170, 0x1F1E6)
"""Where alphabets of squared, circled and flag letters begin."""

LOOKALIKES = {
    **{ord(other): letter for letter, others in _LETTERS.items() for other in others},
    **dict.fromkeys(map(ord, _COLONS), ":"),
    **{first + place: chr(ord("a") + place) for first in _EMBLEMS for place in range(26)},
}
"""Code point to the ASCII character that it looks like."""
