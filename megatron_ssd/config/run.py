"""The configuration of a run, with the checks that need more than one section."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from megatron_ssd.config.cluster import ClusterConfig
from megatron_ssd.config.dataset import FilterConfig, PreprocessConfig
from megatron_ssd.config.evaluation import EvaluationConfig, GeneralBenchmarksConfig, ReportConfig
from megatron_ssd.config.generation import (
    EngineConfig,
    GenerationConfig,
    PromptConfig,
    ProxyConfig,
    SamplingConfig,
    WorkerConfig,
)
from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ParallelConfig
from megatron_ssd.config.precision import FP8_ALIGNMENT, PrecisionConfig
from megatron_ssd.config.problems import BenchmarkConfig, ContaminationConfig, MinicodeConfig, ProblemsConfig
from megatron_ssd.config.training import CheckpointConfig, ExportConfig, OptimizerConfig, PushConfig, TrainingConfig
from megatron_ssd.errors import ConfigError, require

_T = TypeVar("_T")
_CUDA_LENGTHS, _CPU_LENGTHS = 128, 8  # lengths of micro batches are multiples of these

_FIXES = {
    "model": "choose one with model=NAME, for example model=qwen3_30b",
    "problems": "choose a source with problems=NAME, for example problems=rstar_coder",
    "benchmark": "choose one with benchmark=NAME, for example benchmark=livecodebench_v6",
    "sampling": "choose settings with sampling=NAME, for example sampling=qwen3_30b",
    "proxy": "name a smaller model, for example proxy.path=Qwen/Qwen3-0.6B",
}
"""The fix for a section that is null, by its name."""


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """A base model that the pipeline trains from scratch before the other stages.

    It is made once: a later run with the same configuration finds it again.
    """

    experiment: str
    """Experiment (``hydra_configs/experiment/``) that trains the base model."""
    overrides: tuple[str, ...] = ()
    """Overrides of that experiment."""
    base_dir: str = "runs/base"
    """Folder of all base models. Each is in a subfolder that is named after a hash of its configuration."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. A section that is null was not chosen."""

    run_dir: str = "runs/run"
    """Folder of the run. Every stage writes a subfolder."""
    seed: int = 0
    """Seed of the run: of sampling, data order and initialization."""
    objective: Literal["sft", "pretrain"] = "sft"
    """``sft`` trains on responses to prompts, ``pretrain`` on all tokens of documents."""
    dry_run: bool = False
    """``launch/train.py`` only builds the model of each rank without memory and prints its layout; ``launch/push.py``
    only lists the files."""
    replace: bool = False
    """Let a stage move aside output that was made with another configuration."""
    model: ModelConfig | None = None
    """The model to train, evaluate and sample from."""
    problems: ProblemsConfig | None = None
    """Training problems."""
    benchmark: BenchmarkConfig | None = None
    """Evaluation problems."""
    sampling: SamplingConfig | None = None
    """Sampling parameters of training data and evaluation."""
    base: BaseConfig | None = None
    """Base model that the pipeline makes if ``model.path`` is null."""
    proxy: ProxyConfig | None = None
    """Model that scores responses for ``filters.proxy_band``."""
    minicode: MinicodeConfig = field(default_factory=MinicodeConfig)
    """The small world of the demo."""
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    """Decontamination of training problems."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How a problem becomes token ids."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The inference engine."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Output of the sampling stage."""
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    """The part of sampling and evaluation that this process does."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Which samples are left out of training."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """How samples become a data set."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The process grid. If no key is set, the pipeline chooses a grid for the GPUs of this machine."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Number formats and recomputation."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """The machine."""
    moe: MoeConfig = field(default_factory=MoeConfig)
    """Routing of experts."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The training loop."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Which weights are exported."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is decoded and counted."""
    general_benchmarks: GeneralBenchmarksConfig = field(default_factory=GeneralBenchmarksConfig)
    """Other benchmarks through lm-eval."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """Limits of the report."""
    push: PushConfig = field(default_factory=PushConfig)
    """What is uploaded to the Hugging Face Hub."""

    def __post_init__(self) -> None:
        self._check_iterations()
        self._check_sequence_length()
        self._check_device()
        self._check_samples()

    def _check_iterations(self) -> None:
        micro_batches = self.training.num_microbatches(self.parallel.data_parallel_size)
        stages = self.parallel.pipeline_model_parallel_size
        require(
            self.parallel.virtual_pipeline_model_parallel_size is None
            or self.training.packs_steps  # then their number is rounded up
            or micro_batches % stages == 0,
            f"training.global_batch_size = {self.training.global_batch_size}",
            rule=f"interleaved pipeline stages take micro batches in multiples of {stages}, and a replica has "
            f"{micro_batches}",
            fix="change training.global_batch_size or training.micro_batch_size, or set "
            "parallel.virtual_pipeline_model_parallel_size=null",
        )
        require(
            self.optimizer.lr_warmup_iters < self.training.train_iters,
            f"optimizer.lr_warmup_iters = {self.optimizer.lr_warmup_iters}",
            rule=f"must be below training.train_iters ({self.training.train_iters})",
            fix="lower optimizer.lr_warmup_iters",
        )

    def _check_sequence_length(self) -> None:
        if self.model is not None:
            self.parallel.check_model(self.model)
            micro_batch_tokens = self.training.micro_batch_tokens
            self.precision.check_model(self.model, self.parallel, micro_batch_tokens=micro_batch_tokens)
            require(
                self.training.seq_length <= self.model.max_position_embeddings,
                f"training.seq_length = {self.training.seq_length}",
                rule=f"must be at most model.max_position_embeddings ({self.model.max_position_embeddings})",
                fix="lower training.seq_length",
            )
            require(
                self.training.seq_length <= self.model.longest_sequence,
                f"training.seq_length = {self.training.seq_length}",
                rule=f"a sliding window is not supported, and the model's has {self.model.sliding_window} tokens",
                fix=f"use at most {self.model.sliding_window}, which the window covers",
            )
        parts = self.parallel.sequence_parts
        require(
            self.training.seq_length % parts == 0,
            f"training.seq_length = {self.training.seq_length}",
            rule=f"must be a multiple of {parts}: context parallelism splits sequences into 2 x context_parallel_size "
            "parts, and sequence parallelism splits the part of a rank by tensor_model_parallel_size",
            fix=f"use a multiple of {parts}",
        )
        chunks = self.parallel.context_chunks
        require(
            self.segment_multiple % chunks == 0 or self.training.packing == "none",
            f"training.segment_multiple = {self.training.segment_multiple}",
            rule=f"must be a multiple of {chunks}, the parts that context parallelism splits samples into",
            fix=f"use a multiple of {chunks}, or null",
        )

    def _check_device(self) -> None:
        require(
            self.cluster.device == "cuda" or not self.precision.transformer_engine,
            "precision.transformer_engine = true",
            rule="TransformerEngine runs on CUDA devices only and cluster.device is cpu",
            fix="set precision.transformer_engine=false",
        )
        require(
            self.cluster.device == "cuda" or not self.precision.fuses_gradient_accumulation,
            "precision.gradient_accumulation_fusion = true",
            rule="needs CUDA kernels and cluster.device is cpu",
            fix="leave it out",
        )
        require(
            self.cluster.device == "cuda" or not self.moe.uses_deep_ep,
            f"moe.dispatcher = {self.moe.dispatcher}",
            rule="DeepEP's exchange runs on CUDA devices only and cluster.device is cpu",
            fix="set moe.dispatcher=alltoall",
        )
        require(
            self.cluster.device == "cuda" or self.engine.kv_cache_dtype == "auto",
            f"engine.kv_cache_dtype = {self.engine.kv_cache_dtype}",
            rule="vLLM has a KV cache in FP8 on CUDA devices only and cluster.device is cpu",
            fix="set engine.kv_cache_dtype=auto",
        )
        require(
            not self.moe.uses_deep_ep
            or self.parallel.tensor_model_parallel_size * self.parallel.expert_model_parallel_size > 1,
            f"moe.dispatcher = {self.moe.dispatcher}",
            rule="one rank has all experts, so there is nothing to exchange",
            fix="set moe.dispatcher=alltoall or raise parallel.expert_model_parallel_size",
        )
        require(
            self.precision.transformer_engine or not self.moe.router_fusion,
            "moe.router_fusion = true",
            rule="the kernel is TransformerEngine's, and precision.transformer_engine = false",
            fix="set moe.router_fusion=false",
        )
        require(
            self.precision.transformer_engine or self.parallel.cp_comm_type == "p2p",
            f"parallel.cp_comm_type = {self.parallel.cp_comm_type}",
            rule="is for TransformerEngine's attention, and precision.transformer_engine = false",
            fix="leave it out",
        )
        require(
            self.training.packing == "none" or self.parallel.cp_comm_type != "all_gather",
            "parallel.cp_comm_type = all_gather",
            rule=f"TransformerEngine has it for unpacked sequences, and training.packing = {self.training.packing}",
            fix="use p2p or a2a",
        )
        require(
            self.precision.recompute != "selective"
            or "moe_act" not in self.precision.recompute_modules
            or self.moe.grouped_gemm,
            f"precision.recompute_modules = {list(self.precision.recompute_modules)}",
            rule="moe_act is a part of grouped experts, and moe.grouped_gemm = false",
            fix="leave moe_act out or set moe.grouped_gemm=true",
        )

    def _check_samples(self) -> None:
        require(
            self.filters.length_capped != "mask_end" or self.preprocess.ids == "sampled",
            "filters.length_capped = mask_end",
            rule="needs the ids as sampled, and preprocess.ids = retokenized has others",
            fix="set preprocess.ids=sampled, or filters.length_capped to keep or drop",
        )
        require(
            not self.general_benchmarks.tasks or self.engine.backend == "vllm",
            f"general_benchmarks.tasks = {list(self.general_benchmarks.tasks)}",
            rule=f"lm-eval runs on engines of its own, and engine.backend = {self.engine.backend}",
            fix="set engine.backend=vllm for this stage, or general_benchmarks.tasks=[]",
        )

    @property
    def trains_from_base(self) -> bool:
        """Whether training starts from the weights of ``model.path``, and not from random ones.

        Fine-tuning always does. Pretraining does if a model is named.
        """
        return self.objective == "sft" or (self.model is not None and self.model.path is not None)

    @property
    def segment_multiple(self) -> int:
        """The length of a sample in a packed sequence is rounded up to a multiple of this; 1 without packing."""
        if self.training.packing == "none":
            return 1
        return self.training.segment_multiple or self.parallel.context_chunks

    @property
    def length_multiple(self) -> int:
        """The length of a micro batch that is shorter than the longest one is rounded up to a multiple of this.

        The layout and FP8 need some of it; the rest keeps kernels from seeing many lengths.
        """
        fp8 = 1 if self.precision.fp8 is None else FP8_ALIGNMENT[self.precision.fp8.recipe]
        at_least = _CUDA_LENGTHS if self.cluster.device == "cuda" else _CPU_LENGTHS
        return math.lcm(self.segment_multiple, self.parallel.sequence_parts * fp8, at_least)


def needed(section: _T | None, name: str) -> _T:
    """The section of this name. Raises ``ConfigError`` if it is null."""
    if section is None:
        raise ConfigError(f"{name} = null", rule=f"this stage needs {name}", fix=_FIXES[name])
    return section
