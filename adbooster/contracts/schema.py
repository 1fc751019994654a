"""The tables: the contract between the jobs. Rows in flight only grow to the right and edit nothing but `reject`."""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.errors import SchemaError

# Why a picture was not used, or a request not filled. One fixed word each; null means usable.
REJECTS = (
    "malformed_row",
    "missing_id",
    "duplicate_id",
    "field_too_long",
    "missing_image",
    "refused_address",
    "unreachable_image",
    "oversized_image",
    "unreadable_image",
    "image_too_small",
    "mask_empty",
    "mask_full",
    "mask_touches_border",
    "mask_in_pieces",
    "mask_unsure",
    "caption_empty",
    "not_painted",
    # What a stage could not process: an error, and what ended its process, with one row alone in hand.
    "failed_fetch",
    "failed_mask",
    "failed_caption",
    "failed_paint",
    "failed_measure",
    "failed_placing",
    "crashed",
    "timed_out",
    "too_large",
    # Of candidates and their files; a request that ends on one of them falls back to the original picture.
    "below_original",
    "product_expanded",
    "second_copy",
    "people_not_asked",
    "text_in_scene",
    "unsafe",
    "duplicate_background",
    "floating",
    "harsh_light",
    "unusable",
    # What a vision model saw in a candidate that would be published.
    "seen_floating",
    "seen_wrong_scale",
    "seen_extra_product",
    "seen_people",
    "seen_text",
    "seen_other_scene",
    "seen_tasteless",
    # Of pairs that a brand rule forbids; they are no requests.
    "never_painted",
    "not_for_cohort",
    "scene_not_allowed",
    "out_of_season",
    # Of slots that a channel has and a creative does not fill.
    "holdout",
    "needs_extension",
    "too_small",
    "product_outside",
    "over_budget",
    "product_altered",
    "altered_master",
    "missing_mask",
    "failed_readback",
    "failed_delivery",
)
ROLES = ("main", "additional", "lifestyle")


def _schema(base: pa.Schema | None = None, **columns: pa.DataType) -> pa.Schema:
    fields = [f for f in base or [] if f.name not in columns]
    return pa.schema(fields + [pa.field(name, kind) for name, kind in columns.items()])


def _in_buckets(base: pa.Schema) -> pa.Schema:
    """With `bucket` beside the product: 0-65535, first 16 bits of its id's SHA-256; null until its file is written anew."""
    return base.insert(base.get_field_index("product_id") + 1, pa.field("bucket", pa.int32()))


_TEXTS = pa.list_(pa.string())
_WHEN = pa.timestamp("us", tz="UTC")

# What is measured on a photo and its mask, so that rules can change without decoding either again.
_MASK = {
    "mask_uri": pa.string(),
    "mask_by": pa.string(),
    "mask_how": pa.string(),  # alpha (the photo's own), matting, guided, network; null: made before there was the column
    "mask_area_share": pa.float32(),
    "mask_border_share": pa.float32(),
    "mask_pieces": pa.int32(),
    "mask_unsure_share": pa.float32(),  # of its area, that has the page's colour and was not cut out; null as above
    "outside_deviation": pa.float32(),
}
_CAPTION = {"caption": pa.string(), "caption_by": pa.string()}

# One row a picture of a product, as the feed names it.
PICTURES = _schema(
    sample_id=pa.string(),
    product_id=pa.string(),
    role=pa.string(),
    title=pa.string(),
    category=pa.string(),
    brand=pa.string(),
    image_uri=pa.string(),
    weight=pa.float32(),  # what the product is worth to the shop, from the feed, 0 or more; null: 1
    available=pa.bool_(),  # whether it can be bought or ordered; null: the feed does not say
    reject=pa.string(),
)

# The same with what is known of the picture from an earlier night: null for a new one.
KNOWN = _schema(
    image_uri=pa.string(),
    photo_uri=pa.string(),
    photo_sha256=pa.string(),
    etag=pa.string(),
    last_modified=pa.string(),
    width=pa.int32(),
    height=pa.int32(),
    **_MASK,
    **_CAPTION,
    reject=pa.string(),
    fingerprint=pa.string(),
    retired_at=_WHEN,
)
PLANNED = _schema(PICTURES, known=pa.struct(list(KNOWN)))
FETCHED = _schema(
    PLANNED,
    photo_uri=pa.string(),
    photo_sha256=pa.string(),
    width=pa.int32(),
    height=pa.int32(),
    etag=pa.string(),
    last_modified=pa.string(),
    kept=pa.bool_(),
    fingerprint=pa.string(),
)

# Pixels in flight: made for the networks' stages, dropped by the stage that has used them.
_NETWORK_U8 = {"network_u8": pa.binary()}  # the photo as the mask network takes it, uint8 [3,h,w]; null: it has a mask
SHRUNK = _schema(FETCHED, **_NETWORK_U8, caption_u8=pa.binary())  # uint8 [h,w,3]; null: it has a caption
CAPTIONED = _schema(FETCHED, **_CAPTION, **_NETWORK_U8)
SEGMENTED = _schema(FETCHED, **_CAPTION, probability=pa.binary())  # float32 [h,w] as a .npy file; null as before
MASKED = _schema(FETCHED, **_MASK, **_CAPTION)
JUDGED = _schema(MASKED, background=pa.string())

# What is staged: tonight's values, without those of an earlier night.
PREPARED = pa.schema([f for f in JUDGED if f.name != "known"])
SAMPLES = _in_buckets(_schema(pa.schema([f for f in PREPARED if f.name != "kept"]), retired_at=_WHEN))
COHORTS = _schema(
    cohort_id=pa.string(),
    family=pa.string(),
    query=pa.string(),
    context=pa.string(),
    interests=_TEXTS,
    shares=pa.list_(pa.float32()),  # of `interests`, in their order; empty where a person wrote the cohort
    size=pa.int64(),
    negative=pa.string(),  # what must not be painted for this cohort, besides what holds for all
    centroid=pa.list_(pa.float32()),  # unit vector in the space of `text_model`; empty where a person wrote the cohort
    text_model=pa.string(),
    version=pa.string(),
)

# Which cohort a user belongs to; users are 32 hex digits, HMAC-SHA256 under a salt that is stored nowhere.
MEMBERS = _schema(user_hash=pa.string(), cohort_id=pa.string())

# A product and a cohort to be painted for it, with the inputs of its prompt; `words` describe the product.
PAIRS = _schema(
    product_id=pa.string(),
    cohort_id=pa.string(),
    family=pa.string(),
    words=pa.string(),
    title=pa.string(),
    category=pa.string(),
    brand=pa.string(),
    query=pa.string(),
    context=pa.string(),
    negative=pa.string(),
)
PROMPTED = _schema(PAIRS, prompt=pa.string(), negative_prompt=pa.string(), prompt_style=pa.string())

# What a language model wrote, by the digest of the whole request.
PROMPTS = _schema(
    key=pa.string(),
    model=pa.string(),
    scene=pa.string(),
    negative=pa.string(),
    product=pa.string(),
    query=pa.string(),
    context=pa.string(),
)

# One product x one cohort under one recipe, with all that painting it needs but the pixels.
REQUESTS = _schema(
    request_id=pa.string(),
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    category=pa.string(),
    family=pa.string(),
    text=pa.string(),
    prompt=pa.string(),
    negative_prompt=pa.string(),
    prompt_style=pa.string(),
    arm=pa.string(),  # as in CREATIVES
    photo_uri=pa.string(),
    photo_sha256=pa.string(),
    mask_uri=pa.string(),
    own_photo_uris=_TEXTS,
    round=pa.int32(),
    again_for=pa.string(),  # reject word that the round before ended on; null in the first
    reject=pa.string(),
)
LAYOUT = pa.struct([(name, pa.int32()) for name in ("x_px", "y_px", "width_px", "height_px")])
GATES = pa.struct(
    [
        ("product_max_diff", pa.int32()),  # 0-255, of the stored file; 0 in every lossless one
        ("psnr_db", pa.float32()),  # of the product in a lossy file; null when lossless
        ("expansion_share", pa.float32()),
        ("copy_similarity", pa.float32()),
        ("people", pa.float32()),
        ("text", pa.float32()),
        ("unsafe", pa.bool_()),
    ]
)
# How product and scene agree (pictures.lighting.Agreement); angles: 0 is light from the right, 90 from above.
LIGHT = pa.struct(
    [
        ("colour_distance", pa.float32()),  # mean CIEDE2000 between the product's rim and the scene just outside it
        ("scene_light_deg", pa.float32()),
        ("scene_light_confidence", pa.float32()),  # 0-1
        ("product_light_deg", pa.float32()),
        ("product_light_confidence", pa.float32()),
        ("light_opposition", pa.float32()),  # 0-1: how surely light comes from opposite sides
        ("ground_line", pa.float32()),  # share of the height at which the ground begins; null: none is found
        ("contact_share", pa.float32()),  # of the product's lowest edge on the ground; null: no ground is found
        ("clash", pa.float32()),  # 0-1, the worst of what does not agree
    ]
)
# Between placing and painting: a request, where its product may stand, and what it competes with.
_OVERLAY = pa.struct(
    [
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("premultiplied", pa.binary()),  # uint8 [h,w,3], the product's colours times alpha
        ("alpha", pa.binary()),  # uint8 [h,w]
    ]
)
_PLACE = pa.struct(
    [
        ("number", pa.int32()),  # among the recipe's layouts
        ("layout", LAYOUT),
        ("painted", _OVERLAY),  # at the size that is painted
        ("judged", _OVERLAY),  # at the size that gates look at; null: the same
        ("light_deg", pa.float64()),  # on the product
        ("light_confidence", pa.float64()),
    ]
)
PLACED = _schema(
    REQUESTS,
    places=pa.list_(_PLACE),
    own_pixels=pa.list_(pa.binary()),  # of the product's own pictures, uint8 in the rank model's size, main one first
)

# Between painting and finishing: what was decided, and the paintings that won.
_PICK = pa.struct(
    [
        ("number", pa.int32()),  # among the candidates of all rounds
        ("score", pa.float64()),
        ("layout", LAYOUT),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("painted", pa.binary()),  # uint8 [h,w,3]
        ("gates", GATES),
        ("light", LIGHT),
        ("phash", pa.string()),
        ("simhash", pa.string()),
        ("reward", pa.float32()),  # the learned score, 0-1; null: ranked by CLIP alone
        ("unusable", pa.float32()),  # probability by the usability gate, 0-1; null: it was not asked
    ]
)
_SHOWN = pa.struct(
    [
        ("number", pa.int32()),
        ("score", pa.float64()),
        ("word", pa.string()),
        ("figures", pa.string()),  # JSON
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("preview", pa.binary()),  # uint8 [h,w,3]
    ]
)
PAINTED = _schema(
    pa.schema([f for f in REQUESTS if f.name != "reject"]),
    own_scores=pa.list_(pa.float64()),
    candidate_scores=pa.list_(pa.float32()),
    candidate_rejects=_TEXTS,
    picks=pa.list_(_PICK),  # best first; none: the product's own picture is the creative
    shown=pa.list_(_SHOWN),  # all candidates, of requests that the page shows; else null
    gpu_s=pa.float32(),
    paint_batch=pa.int32(),
    reject=pa.string(),
)
_CREATIVES = _schema(
    creative_id=pa.string(),
    request_id=pa.string(),
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    rank=pa.int32(),
    prompt=pa.string(),
    negative_prompt=pa.string(),
    prompt_style=pa.string(),
    text=pa.string(),  # the cohort's, as scored against
    photo_sha256=pa.string(),  # of the product's photo
    seed=pa.int64(),
    layout=LAYOUT,
    recipe_id=pa.string(),
    weights_revision=pa.string(),
    clip_score=pa.float32(),
    neutral_score=pa.float32(),
    margin=pa.float32(),
    candidate_scores=pa.list_(pa.float32()),  # of all the round's candidates, by seed; null: stopped early
    gates=GATES,
    light=LIGHT,  # of the painting; null for an original picture and for creatives of earlier versions
    fallback=pa.bool_(),
    fallback_reason=pa.string(),
    background_phash=pa.string(),  # 64 bits in hex, product masked out
    background_simhash=pa.string(),  # 256 signs of the scene's CLIP vector in hex
    uri=pa.string(),
    sha256=pa.string(),
    width=pa.int32(),
    height=pa.int32(),
    size_bytes=pa.int64(),
    gpu_s=pa.float32(),
    run_id=pa.string(),
    arm=pa.string(),  # of the experiments that its pair is in, as "experiment=arm", comma between; null: in none
    reward=pa.float32(),  # the learned score, 0-1; null: ranked by CLIP alone
    unusable=pa.float32(),  # probability by the usability gate, 0-1; null: it was not asked
)
CREATIVES = _in_buckets(_CREATIVES)
STAGED = _schema(
    _CREATIVES,
    round=pa.int32(),
    candidate_rejects=_TEXTS,  # the word of every candidate that a gate turned down for this request
    paint_batch=pa.int32(),  # paintings in a pass; smaller than asked for where memory ran out
    reject=pa.string(),
)

# People's approvals and rejections of creatives, and which requests stay empty because of them.
MARKS = _schema(
    creative_id=pa.string(),
    mark=pa.string(),  # approved, rejected, retired (outcomes), empty or kept: what its request ended on is not shown
    request_id=pa.string(),
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    sha256=pa.string(),
    run_id=pa.string(),  # the run that read the mark
)

# What people have said of creatives, every word of every file that a night read: added to, never changed.
DECISIONS = _schema(
    decision_id=pa.string(),
    creative_id=pa.string(),
    mark=pa.string(),  # approved, rejected or cleared
    marked_by=pa.string(),  # as the file says; null where it does not
    marked_at=pa.string(),  # as the file says
    file_uri=pa.string(),
    file_sha256=pa.string(),
    signed=pa.bool_(),  # whether a signature was asked for, and was right
    read_at=_WHEN,
    run_id=pa.string(),
)

# A live creative, and what is needed to measure it.
PICTURES_TO_MEASURE = _schema(
    look_id=pa.string(),
    creative_id=pa.string(),
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    family=pa.string(),
    text=pa.string(),
    prompt_style=pa.string(),
    photo_uri=pa.string(),
    mask_uri=pa.string(),
    neutral_uris=_TEXTS,
    contextual_uris=_TEXTS,
    uri=pa.string(),
    layout=LAYOUT,
    fallback=pa.bool_(),
    fallback_reason=pa.string(),
    gpu_s=pa.float32(),
    reject=pa.string(),
)

# A request of a trial: painted to be compared, never published.
TRIAL_REQUESTS = _schema(REQUESTS, look_id=pa.string(), neutral_uris=_TEXTS, contextual_uris=_TEXTS)

# What was measured on a creative, or on the candidates of one request of a trial. Scores are CLIP cosines with `text`.
# A row without a cohort is a scene of the catalog's own: its features alone are measured.
LOOKS = _schema(
    look_id=pa.string(),
    creative_id=pa.string(),  # null in a trial
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    family=pa.string(),
    text=pa.string(),
    prompt_style=pa.string(),
    rank_scores=pa.list_(pa.float32()),  # of every candidate in the order of their seeds; of a live creative, its own
    judge_scores=pa.list_(pa.float32()),
    best=pa.int32(),  # the candidate that `rank` prefers: all that follows is measured on it
    neutral_rank=pa.float32(),
    neutral_judge=pa.float32(),
    contextual_rank=pa.float32(),  # null where the product has no picture in a scene
    contextual_judge=pa.float32(),
    product_max_diff=pa.int32(),
    psnr_db=pa.float32(),
    expansion_share=pa.float32(),
    copy_similarity=pa.float32(),
    people=pa.float32(),
    text_in_scene=pa.float32(),
    sharpness=pa.float32(),
    exposure=pa.float32(),
    clipped_share=pa.float32(),
    background_phash=pa.string(),
    background_simhash=pa.string(),
    scene_vector=pa.list_(pa.float32()),  # judge's unit vector of the picture without its product; null of an original
    features=pa.list_(pa.float32()),  # of the whole picture, by the Inception model or else the judge
    fallback=pa.bool_(),  # in a trial: nothing beat the product's own pictures, so a night would publish the original
    fallback_reason=pa.string(),
    gpu_s=pa.float32(),
    reject=pa.string(),
)

# A stored creative, or a text alone, whose vectors are wanted, with all that a head sees of the creative besides.
TO_EMBED = _schema(
    vector_id=pa.string(),
    model=pa.string(),  # content hash of the CLIP
    creative_id=pa.string(),  # null: a text alone
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    text=pa.string(),
    clip_score=pa.float32(),
    layout=LAYOUT,
    width=pa.int32(),
    height=pa.int32(),
    gates=GATES,
    light=LIGHT,
    uri=pa.string(),
    photo_uri=pa.string(),  # of the product's photo, where it is the one that the creative was painted for
    mask_uri=pa.string(),
    reject=pa.string(),
)

# Unit vectors by the CLIP that ranks, of creatives that people have judged or clicked and of their texts.
VECTORS = _schema(
    pa.schema([f for f in TO_EMBED if f.name not in ("photo_uri", "mask_uri", "reject")]),
    vector=pa.list_(pa.float32()),  # of the picture, or of the text
    scene_vector=pa.list_(pa.float32()),  # of the picture without its product; null of a text, and without the photo
    reject=pa.string(),
)

# What a vision model saw in the picture with these bytes, by the digest of them, all that was asked, and who was asked.
SIGHTINGS = _schema(
    sighting_id=pa.string(),
    sha256=pa.string(),
    seen_floating=pa.bool_(),  # null, as for the others: it was not asked
    seen_wrong_scale=pa.bool_(),
    seen_extra_product=pa.bool_(),
    seen_people=pa.bool_(),
    seen_text=pa.bool_(),
    seen_other_scene=pa.bool_(),
    seen_tasteless=pa.bool_(),
    why=pa.string(),  # in the model's words, cleaned; nothing follows from it
    model=pa.string(),
    run_id=pa.string(),
)

# A candidate of a trial's request that was kept as a finished picture.
CANDIDATES = _schema(
    request_id=pa.string(),
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    prompt=pa.string(),
    photo_uri=pa.string(),
    mask_uri=pa.string(),
    uri=pa.string(),
    layout=LAYOUT,
    width_px=pa.int32(),
    height_px=pa.int32(),
    score=pa.float32(),  # CLIP cosine with the cohort's text
    reject=pa.string(),
)

# Two pictures of one product, prompt and size, of which one is preferred; addresses are relative to the root.
PREFERENCES = _schema(
    pair_id=pa.string(),
    product_id=pa.string(),
    cohort_id=pa.string(),
    prompt=pa.string(),
    placement=pa.string(),
    photo_uri=pa.string(),
    mask_uri=pa.string(),
    winner_uri=pa.string(),
    loser_uri=pa.string(),
    winner_layout=LAYOUT,
    loser_layout=LAYOUT,
    width_px=pa.int32(),  # of both pictures
    height_px=pa.int32(),
    source=pa.string(),  # approved (over rejected, by people), clicks, rank or judge
    weight=pa.float32(),  # in the loss, 0-1
)

# A creative to be extended: the frame reaches beyond it.
EXTENSION_REQUESTS = _schema(
    extension_id=pa.string(),
    master_uri=pa.string(),
    master_sha256=pa.string(),
    mask_uri=pa.string(),
    layout=LAYOUT,
    frame=LAYOUT,
    kept=LAYOUT,  # the part of the creative that stays as it is, in the frame
    scale=pa.float64(),  # painted pixels for one of the creative's
    prompt=pa.string(),
    negative_prompt=pa.string(),
    text=pa.string(),  # the cohort's
    reject=pa.string(),
)

# A canvas as the model sees it. Never stored.
CANVASES = _schema(
    **{f.name: f.type for f in EXTENSION_REQUESTS},
    width_px=pa.int32(),
    height_px=pa.int32(),
    seen=pa.binary(),  # uint8 [H,W,3]
    known=LAYOUT,  # where the creative is kept, in whole pixels of the canvas
    product=pa.binary(),  # uint8 [H,W], the product's alpha
)

# A canvas that was painted. Never stored.
EXTENDED = _schema(
    **{f.name: f.type for f in EXTENSION_REQUESTS},
    width_px=pa.int32(),
    height_px=pa.int32(),
    painted=pa.binary(),  # uint8 [H,W,3]
    seam=pa.float32(),
    attempts=pa.int32(),
    gpu_s=pa.float32(),
)

# The file of an extended creative, lossless and of the frame's size, or why there is none.
EXTENSIONS = _schema(
    extension_id=pa.string(),
    extended_uri=pa.string(),
    extended_sha256=pa.string(),
    seam=pa.float32(),
    attempts=pa.int32(),
    gpu_s=pa.float32(),
    reject=pa.string(),
)

# A rendition to be made: the part of a stored creative that a slot shows, what its file may be and what it says of itself
# (nulls are not written); `photo_uri` is of the photo that a signature names.
RENDITION_REQUESTS = _schema(
    rendition_id=pa.string(),
    master_uri=pa.string(),
    master_sha256=pa.string(),
    extension_id=pa.string(),
    extended_uri=pa.string(),  # what it is cut from where that is not the creative itself; layout and frame are in it then
    extended_sha256=pa.string(),
    mask_uri=pa.string(),
    photo_uri=pa.string(),
    layout=LAYOUT,
    frame=LAYOUT,
    width_px=pa.int32(),
    height_px=pa.int32(),
    formats=_TEXTS,
    max_bytes=pa.int64(),
    digital_source_type=pa.string(),
    ai_system=pa.string(),
    ai_version=pa.string(),
    prompt=pa.string(),
    prompt_writer=pa.string(),
    reject=pa.string(),
)

# The file of a rendition, or why there is none.
RENDITIONS = _schema(
    rendition_id=pa.string(),
    uri=pa.string(),
    sha256=pa.string(),
    width_px=pa.int32(),
    height_px=pa.int32(),
    size_bytes=pa.int64(),
    format=pa.string(),  # jpeg, png or webp
    quality=pa.int32(),  # of a lossy file; null when lossless
    psnr_db=pa.float32(),
    delta_e_mean=pa.float32(),  # CIEDE2000 between the product in the file and before encoding; null when lossless
    delta_e_p99=pa.float32(),  # its 99th percentile
    signed_by=pa.string(),  # SHA-256 of the certificate that signed the file (C2PA); null: it is not signed
    reject=pa.string(),
)

# What a channel is given for a product and a cohort: one row a slot, filled or empty.
DELIVERIES = _schema(
    delivery_id=pa.string(),  # digest of product, cohort, channel and slot
    creative_id=pa.string(),
    product_id=pa.string(),
    cohort_id=pa.string(),
    placement=pa.string(),
    channel=pa.string(),
    slot=pa.string(),
    rendition_id=pa.string(),  # digest of the creative's file, slot and settings: the same name, the same picture
    master_sha256=pa.string(),  # of the creative's file
    frame=LAYOUT,  # the part of the creative that is shown, in its pixels; an extension's reaches beyond its edges
    made_by=pa.string(),  # crop, extension, or placement (a crop of a creative of another placement); null: empty
    extension_id=pa.string(),  # of the extension that is shown
    extended_uri=pa.string(),  # the creative with more scene round it, lossless
    extended_sha256=pa.string(),
    seam=pa.float32(),  # step across the creative's edge over the scene's own
    refused_extensions=_TEXTS,  # extensions that were tried first and are not shown
    refused_why=_TEXTS,  # a word for each of them
    reason=pa.string(),  # why the slot is empty; null: it is filled
    digital_source_type=pa.string(),  # code of the IPTC vocabulary that the file carries
    propensity=pa.float32(),  # probability with which this was chosen among the pair's variants, 0-1; null: before there was it
    arm=pa.string(),  # of the creative
    drawn_for=pa.date32(),  # first day of the period of several days that it was drawn for among variants; null: no such period
    **{f.name: f.type for f in RENDITIONS if f.name not in ("rendition_id", "reject")},
    run_id=pa.string(),
)

# Products, cohorts and creatives that no channel is given.
WITHDRAWALS = _schema(
    withdrawal_id=pa.string(),
    kind=pa.string(),  # product, cohort or creative
    value=pa.string(),  # its id
    withdrawn_at=_WHEN,
    run_id=pa.string(),
)

# What was ever delivered, so that outcomes which come later can be joined: added to; of what is there only the arm may change.
SHOWN = _schema(
    creative_id=pa.string(),  # of a held-out pair that of its original picture (experiments.holdout.control_id)
    product_id=pa.string(),
    cohort_id=pa.string(),
    family=pa.string(),
    placement=pa.string(),
    request_id=pa.string(),
    control=pa.bool_(),  # the original picture of a held-out pair
    arm=pa.string(),
    margin=pa.float32(),
    run_id=pa.string(),
)

# What people did, by creative, day and channel: aggregates only, never a user.
OUTCOMES = _schema(
    outcome_id=pa.string(),  # digest of creative, day and channel
    creative_id=pa.string(),
    day=pa.date32(),
    channel=pa.string(),  # empty where the file does not say
    product_id=pa.string(),
    cohort_id=pa.string(),
    family=pa.string(),
    placement=pa.string(),
    control=pa.bool_(),
    arm=pa.string(),
    margin=pa.float32(),
    impressions=pa.int64(),
    clicks=pa.int64(),
    conversions=pa.int64(),
    propensity=pa.float32(),  # with which the creative was shown on the day, 0-1
    run_id=pa.string(),  # the run that read it
)

# With which probability each variant of a place, and each arm of an experiment in a family, is shown from now on.
ALLOCATIONS = _schema(
    allocation_id=pa.string(),
    level=pa.string(),  # variant or arm
    product_id=pa.string(),  # of a variant, as are cohort_id, placement and creative_id
    cohort_id=pa.string(),
    placement=pa.string(),
    creative_id=pa.string(),
    experiment=pa.string(),  # of an arm
    arm=pa.string(),
    family=pa.string(),
    weight=pa.float32(),  # 0-1; those of one place, or of one experiment and family, are 1 together
    impressions=pa.int64(),
    clicks=pa.int64(),
    ctr=pa.float32(),  # posterior mean; low and high are its 95 % ends
    ctr_low=pa.float32(),
    ctr_high=pa.float32(),
    run_id=pa.string(),
)


def check(table: pa.Table, wanted: pa.Schema, what: str = "table") -> pa.Table:
    """The table with exactly the wanted columns in their order; SchemaError names the first missing or mistyped one."""
    for field in wanted:
        if field.name not in table.column_names:
            raise SchemaError(f"{what} lacks the column {field.name!r}; it has {', '.join(table.column_names)}")
        actual = table.schema.field(field.name).type
        if actual != field.type and not pa.types.is_null(actual):
            raise SchemaError(f"{what}: column {field.name!r} should be {field.type} and is {actual}")
    return table.select(wanted.names).cast(wanted)


def fill(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The table with exactly the wanted columns: those it lacks as nulls, those not wanted dropped."""
    columns = {
        f.name: table[f.name] if f.name in table.column_names else pa.nulls(table.num_rows, f.type) for f in wanted
    }
    return pa.table(columns).cast(wanted)


def counted(words: pa.ChunkedArray) -> Counter[str]:
    """How often each text is there; nulls are left out."""
    return Counter({c["values"]: c["counts"] for c in pc.value_counts(words.drop_null()).to_pylist()})


def extend(table: pa.Table, wanted: pa.Schema, **columns: Iterable) -> pa.Table:
    """The table grown to `wanted` by `columns` (lists of Python values); a stage's last line."""
    kept = {name: table[name] for name in table.column_names if name in wanted.names}
    new = {name: pa.array(list(values), wanted.field(name).type) for name, values in columns.items()}
    return check(pa.table(kept | new), wanted)
