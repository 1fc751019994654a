"""Settings and report of `jobs.prepare`."""

from typing import Self

from pydantic import BaseModel, Field, field_validator, model_validator

from adbooster.catalog.formats import FeedFormat
from adbooster.contracts.settings import Config, JobConfig, Pool, SecretName, Uri, secret_of
from adbooster.models.settings import Captions, Masking, MaskNetwork
from adbooster.prepare import addresses


class Rules(Config):
    """What a picture must be to be used. A changed rule judges again, without decoding a picture."""

    min_side_px: int = Field(default=200, ge=16)
    """A photo with a shorter side is rejected."""
    max_mb: float = Field(default=16, gt=0)
    """A larger file, in megabytes, is not read."""
    min_area_share: float = Field(default=0.01, ge=0, le=1)
    """A mask with a smaller share of white is no product."""
    max_area_share: float = Field(default=0.9, ge=0, le=1)
    """A mask with a larger share of white is no cut-out."""
    max_border_share: float = Field(default=0.02, ge=0, le=1)
    """Share of the border that the product of a main photo may touch; more means it is cut off."""
    max_pieces: int = Field(default=4, ge=1)
    """Parts that the product of a main photo may fall into (a pair of shoes has two); specks do not count."""
    max_unsure_share: float = Field(default=1.0, ge=0, le=1)
    """Share of a main photo's mask that may be a hole as well as product (`masking.holes`); more is `mask_unsure`."""
    plain_deviation: float = Field(default=12, ge=0)
    """Standard deviation (0-255) outside the mask below which a background is plain, not a scene."""


class Http(Config):
    """Limits, time-outs and retries of fetching photos."""

    concurrency: int = Field(default=16, ge=1, le=1000)
    """Photos under way at once, an actor."""
    per_host: int = Field(default=8, ge=1)
    """Photos under way at once from one host, all actors of all nodes together; fewer for a host that answers 429 or 5xx."""
    requests_per_s: float | None = Field(default=None, gt=0)
    """Photos begun a second from one host, all actors together; null: no limit but `per_host`."""
    connect_s: float = Field(default=10, gt=0)
    """Longest wait for a connection."""
    read_s: float = Field(default=20, gt=0)
    """Longest wait for the next bytes."""
    deadline_s: float = Field(default=90, gt=0)
    """Longest time for one photo with all its tries; pauses that its host asks of everybody do not count."""
    attempts: int = Field(default=4, ge=1, le=20)
    """Tries after 429, 5xx or a broken connection, with growing random pauses between them."""
    retry_after_s: float = Field(default=30, ge=0)
    """Longest pause that a server's Retry-After can ask for; all actors heed it."""
    user_agent: str = "adbooster"
    """User-Agent header of requests."""


class Credentials(Config):
    """Credentials of their own for photos on S3, which should allow reading only: names of environment variables of
    every node, never values. Empty: the job's own credentials."""

    key_env: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Variable with the access key's id."""
    secret_env: SecretName = ""
    """Variable with the secret key."""
    token_env: SecretName = ""
    """Variable with the session token, where there is one."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.key_env) != bool(self.secret_env) or (self.token_env and not self.key_env):
            raise ValueError("key_env and secret_env go together, and token_env only with them")
        return self

    def client_options(self) -> dict[str, str]:
        """As the storage's client takes them; none where the job's own credentials are used.

        raises ConfigError for a variable that is not set
        """
        names = {"key": self.key_env, "secret": self.secret_env, "token": self.token_env}
        return {option: secret_of(name, f"fetch_credentials.{option}_env") for option, name in names.items() if name}


class Source(Config):
    """Where photos may come from."""

    feed_uri: str
    """Base of relative links."""
    allowed_file_root: str = ""
    """Folder below which local pictures may lie; empty: the feed's own folder."""
    allow_private_hosts: bool = False
    """Addresses inside the network may be requested."""
    allowed_stores: tuple[str, ...] | None = None
    """Folders of object storage in which photos may lie; null: the feed's own folder."""
    fetch_credentials: Credentials = Credentials()
    """What photos in object storage are read with."""
    http: Http = Field(default_factory=Http)
    """How photos are fetched."""


class PrepareConfig(JobConfig):
    """Settings of `jobs.prepare`."""

    feed_uri: Uri
    """The product feed: a file, a folder of files, http(s):// or s3://; gzipped or not."""
    feed_format: FeedFormat = "auto"
    """What the feed is; auto: detected from its first bytes, and named in log and report."""
    columns: dict[str, str] = Field(default_factory=dict)
    """For a feed with names of its own: our name (id, title, image_link, ...): the feed's name."""
    allowed_file_root: Uri = ""
    """Folder below which local pictures may lie; empty: the feed's own folder."""
    allow_private_hosts: bool = False
    """Pictures may be requested from private, loopback and link-local addresses."""
    allowed_stores: tuple[str, ...] | None = None
    """Buckets or folders (s3://bucket/folder) of object storage in which pictures may lie; null: the bucket and folder of a
    feed that lies in object storage itself, none for any other feed."""
    fetch_credentials: Credentials = Credentials()
    """Credentials of their own for pictures on S3."""
    http: Http = Http()
    """How photos are fetched over http(s)."""
    mask_model: Uri
    """Salient-object network (U2-Net, IS-Net, BiRefNet, ...), an .onnx file."""
    mask_network: MaskNetwork = MaskNetwork()
    """How it is fed and read."""
    masking: Masking = Masking()
    """How masks are made."""
    caption_model: Uri
    """BLIP model, a folder in transformers layout."""
    captions: Captions = Captions()
    """How captions are generated."""
    device: str = Field(default="cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    threads: int = Field(default=1, ge=1)
    """CPU threads a model actor."""
    fetch: Pool = Pool(batch=32)
    """Actors that fetch photos."""
    shrink: Pool = Pool(batch=16)
    """Actors that decode photos and scale them to what the networks take; they need no GPU."""
    caption: Pool = Pool(batch=16)
    """Actors that caption."""
    mask: Pool = Pool(batch=8)
    """Actors of the mask network, which do nothing else."""
    refine: Pool = Pool(batch=8)
    """Actors that refine masks at the photo's size; they need no GPU, and some ten to a GPU."""
    judge: Pool = Pool(batch=32)
    """Actors that judge."""
    rules: Rules = Rules()
    """What a picture must be to be used."""
    max_reject_share: float = Field(default=0.2, ge=0, le=1)
    """More rejected or unreachable pictures than this share stop the job before anything is live."""
    progress_s: float = Field(default=30, gt=0)
    """Seconds between two lines of progress in the log."""

    @field_validator("allowed_stores")
    @classmethod
    def _are_folders(cls, stores: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for store in stores or ():
            try:
                addresses.prefix(store)
            except addresses.Refused as e:
                raise ValueError(f"{store!r} should be a bucket or folder such as s3://shop/photos: {e}") from e
        return stores

    def pools(self) -> dict[str, Pool]:
        names = ("fetch", "shrink", "caption", "mask", "refine", "judge")
        return {name: getattr(self, name) for name in names}

    def source(self) -> Source:
        """What a fetch actor is given; its limits are a share, to keep to while those of all actors cannot be asked."""
        actors, rate = max(self.fetch.actors, self.fetch.max_actors or 0), self.http.requests_per_s
        share = {"per_host": max(1, self.http.per_host // actors), "requests_per_s": rate and rate / actors}
        http = self.http.model_copy(update=share)
        return Source(
            feed_uri=self.feed_uri,
            allowed_file_root=self.allowed_file_root,
            allow_private_hosts=self.allow_private_hosts,
            allowed_stores=self.allowed_stores,
            fetch_credentials=self.fetch_credentials,
            http=http,
        )


class PrepareReport(BaseModel):
    """What `jobs.prepare` did, or would do; counts are pictures, but for `rows`."""

    job: str = "prepare"
    run_id: str
    dry_run: bool
    feed_format: str
    rows: int
    """products in the feed, bad ones too"""
    pictures: int
    new: int
    changed: int
    """also those that came back"""
    new_or_changed: int
    unchanged: int
    updated: int
    """unchanged, but for the weight or availability of their products, which were written"""
    kept_unreachable: int
    """could not be reached tonight; the photo of an earlier night stays"""
    taken_over: int
    """staged by an unfinished run and used as they are"""
    retired: int
    rejects: dict[str, int]
    bad_weights: int
    """rows of the feed whose weight is no number of 0 or more; it counts as none"""
    notes: list[str]
    """sentences about the feed that nothing was rejected for"""
    fetching: dict | None = None
    """of a dry run: requests, pictures and seconds by host (those with most pictures), seconds of all, and the run that
    they are measured on"""
    pools: list[dict]
    samples_version: int | None
    seconds: float
