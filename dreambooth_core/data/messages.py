"""The messages of the data gate; docs/how-to-photos.md lists them."""

from __future__ import annotations

SKIPPED_HIDDEN = "hidden file"
SKIPPED_SYSTEM = "a file browser's own file"
SKIPPED_FOLDER = "sub-folder: only photos that stand directly in the folder are used"
SKIPPED_SPECIAL = "not a regular file"
SKIPPED_OTHER = "not a picture, by its name and its content"
SKIPPED_UNREADABLE = "not a picture by its name, and cannot be read: {error}"
SKIPPED_LINK_OUTSIDE = "a link that leads outside the folder: put a copy of the photo here instead"
SKIPPED_LINK_NOWHERE = "a link that leads nowhere"
SKIPPED_LINK_LOOP = "a link that leads back to itself"

REJECTED_UNREADABLE = "cannot be read: {error}"
REJECTED_EMPTY = "empty: the file has 0 bytes"
REJECTED_RAW = "a camera's raw file ({suffix}): export it as JPEG or PNG"
REJECTED_KIND = "cannot be decoded: its content is not {kinds}"
REJECTED_TRUNCATED = "truncated: the file ends before the picture does, so copy it again"
REJECTED_DAMAGED = "cannot be decoded: the {kind} data are damaged ({error})"
REJECTED_RANGE = (
    "cannot be decoded: 32-bit pixels have no agreed range, so save it with 8 or 16 bit"
)
REJECTED_PIXELS = (
    "too many pixels: {megapixels} megapixels, at most {allowed} are allowed (data.max_megapixels)"
)
REJECTED_MEMORY = (
    "too many pixels for {kind}, which takes much memory to decode: {megapixels} megapixels, at "
    "most {allowed} are allowed (data.max_megapixels): save it as JPEG or PNG"
)
REJECTED_SCANS = (
    "a progressive JPEG of {megapixels} megapixels with more than {allowed} scans, which takes "
    "minutes to decode: save it again as an ordinary JPEG"
)
REJECTED_SMALL = (
    "too small: {width} x {height} px, the shorter side must have at least {min_side} px "
    "(data.min_side)"
)
REJECTED_BLANK = (
    "blank or almost constant: its grey levels have a standard deviation of {contrast} of 255, "
    "at least {min_contrast} is asked (data.min_contrast)"
)
REJECTED_EXACT = "the same picture, pixel by pixel, as {other}, which stays"
REJECTED_NEAR = (
    "almost the same picture as {other}, which stays: their perceptual hashes differ in "
    "{distance} of 64 bits, and up to {allowed} count as the same (data.near_duplicate_distance)"
)

REJECTED_MASK = "its mask {name} {reason}"
REJECTED_MASK_SIZE = (
    "its mask has another size: {found}, but the photo has {size} once it is upright ({folder}/)"
)
REJECTED_MASK_EMPTY = "its mask shows no subject: less than 1 % of it is white"

WARNED_BLURRY = (
    "looks blurry: sharpness {sharpness}, at least {threshold} is expected (data.blur_threshold)"
)
WARNED_ASPECT = (
    "very long: its sides are {ratio} to 1, beyond {allowed} to 1 (data.max_aspect_ratio), so most "
    "of it is lost in a square crop"
)
WARNED_ENLARGED = (
    "its shorter side has {side} px and is enlarged to {resolution} px for training "
    "(data.resolution)"
)
WARNED_FRAMES = "holds several pictures: only the first one is used"
WARNED_PROFILE = "its colour profile cannot be used, so its colours are taken as sRGB"
WARNED_EXIF = "its EXIF data cannot be read, so it may not stand upright"

REPORT_FEW = (
    "{count} photo(s) accepted: at least {min_photos} are advised (data.min_photos), from "
    "different sides and in different places"
)
REPORT_MANY = (
    "{count} photos accepted: at most {max_photos} are advised (data.max_photos); choose the best"
)
ONE_PLACE_SETTING = ", or set data.masks to auto to learn the subject alone"
"""The end of the next message, for callers that have this setting."""
REPORT_ONE_PLACE = (
    "all {count} photos seem to show the same background: the colours along their edges differ by "
    "at most {difference}, at least {least} is expected; the model learns the background along "
    "with the subject and then ignores the places in prompts, so add photos from other places"
    + ONE_PLACE_SETTING
)
REPORT_TURNED = "turned upright, as their EXIF orientation says: {names}"

CLASS_FEW = (
    "{count} class images: 200 to 300 work for most subjects; with fewer the model forgets more of "
    "what a class looks like, so raise prior.num_class_images when there is time to make them"
)
CLASS_AMONG = (
    "instance photo {photo} also stands among the class images, as {other}: the prior term then "
    "teaches the subject as its whole class"
)

FOLDER_HINT = (
    "put 3 to 6 photos of the subject there, or set subjects.{subject}.instance_dir in params.yaml"
)
FOLDER_MISSING = "the folder of {subject}'s instance photos does not exist"
FOLDER_NO_FOLDER = "{subject}'s instance_dir is not a folder"
FOLDER_UNREADABLE = "the folder of {subject}'s instance photos cannot be read"
FOLDER_EMPTY = "the folder of {subject}'s instance photos is empty"
FOLDER_NOTHING = "no photo of {subject} can be used"

CAPTION_READ = "read as a caption (data.captions)"
CAPTION_TWICE = "{name} has two captions that differ: in a .txt file and in {metadata}"
CAPTION_OF_NOTHING = "a caption is for {name}, which is no photo of this folder"
CAPTION_LINE = "line {number} of {metadata} is not a caption"
CAPTION_MISSING = "without a caption, so trained on the instance prompt: {names}"
CAPTION_NONE = "data.captions is on, but no photo of {subject} has a caption"
CAPTION_NONE_HINT = (
    "write photo.txt beside photo.jpg, or metadata.jsonl with file_name and text; or set "
    "data.captions to false"
)
CAPTION_WITHOUT = (
    "the caption of {file} does not name the identifier {identifier!r}: the subject is not learned "
    "from it under that word"
)

MASK_READ = "read as masks (data.masks)"
MASK_UNREAD = "masks, which only data.masks: files reads"
READ = (CAPTION_READ, MASK_READ)
"""The reasons why an entry is no photo, but used."""
MASK_OF_NOTHING = "{name} is a mask for no photo of this folder"
MASK_SKIPPED = "{name} is no mask: {reason}"
MASK_MISSING = "without a mask, so the whole photo is learned: {names}"
MASK_NONE = "data.masks is files, but no photo of {subject} has a mask"
MASK_NONE_HINT = (
    "put masks/photo.png (the subject white) into the folder of photo.jpg, or use photos with "
    "alpha; or set data.masks to auto or null"
)
