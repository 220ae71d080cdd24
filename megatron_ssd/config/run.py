"""The whole configuration of a run, and the checks that need more than one section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from megatron_ssd.config.dataset import FilterConfig, PreprocessConfig
from megatron_ssd.config.evaluation import EvaluationConfig, RegressionConfig, ReportConfig
from megatron_ssd.config.export import ExportConfig
from megatron_ssd.config.generation import (
    EngineConfig,
    GenerationConfig,
    PromptConfig,
    ProxyConfig,
    SamplingConfig,
    WorkerConfig,
)
from megatron_ssd.config.model import ModelConfig, MoeConfig
from megatron_ssd.config.parallel import ClusterConfig, ParallelConfig
from megatron_ssd.config.precision import PrecisionConfig
from megatron_ssd.config.problems import BenchmarkConfig, ContaminationConfig, MinicodeConfig, ProblemsConfig
from megatron_ssd.config.training import CheckpointConfig, OptimizerConfig, TrainingConfig
from megatron_ssd.errors import ConfigError, require

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """A base model that the pipeline makes before it starts, once, and finds again by its configuration.

    ``experiment`` (with ``overrides``) is composed, trained from scratch and exported below ``base_dir``.
    """

    experiment: str
    overrides: tuple[str, ...] = ()
    base_dir: str = "runs/base"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Every stage takes this and reads its own sections; a section of null was not named.

    ``replace`` lets a stage move aside output that was made with another configuration.
    """

    run_dir: str = "runs/run"
    seed: int = 0
    objective: Literal["sft", "pretrain"] = "sft"
    dry_run: bool = False
    replace: bool = False
    model: ModelConfig | None = None
    problems: ProblemsConfig | None = None
    benchmark: BenchmarkConfig | None = None
    sampling: SamplingConfig | None = None
    base: BaseConfig | None = None
    proxy: ProxyConfig | None = None
    minicode: MinicodeConfig = field(default_factory=MinicodeConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    moe: MoeConfig = field(default_factory=MoeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        micro_batches = self.training.num_microbatches(self.parallel.data_parallel_size)
        stages = self.parallel.pipeline_model_parallel_size
        require(
            self.parallel.virtual_pipeline_model_parallel_size is None or micro_batches % stages == 0,
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
        if self.model is not None:
            self.parallel.check_model(self.model)
            row_tokens = self.training.micro_batch_size * self.training.seq_length
            self.precision.check_model(self.model, self.parallel, row_tokens=row_tokens)
            require(
                self.training.seq_length <= self.model.max_position_embeddings,
                f"training.seq_length = {self.training.seq_length}",
                rule=f"must be at most model.max_position_embeddings ({self.model.max_position_embeddings})",
                fix="lower training.seq_length",
            )
        parts = self.parallel.sequence_parts
        require(
            self.training.seq_length % parts == 0,
            f"training.seq_length = {self.training.seq_length}",
            rule=f"must be a multiple of {parts}: context parallelism cuts rows into 2 x context_parallel_size parts, "
            "sequence parallelism cuts what a rank has by tensor_model_parallel_size",
            fix=f"use a multiple of {parts}",
        )
        chunks = self.parallel.context_chunks
        require(
            self.segment_multiple % chunks == 0 or self.training.packing == "none",
            f"training.segment_multiple = {self.training.segment_multiple}",
            rule=f"must be a multiple of {chunks} where context parallelism cuts samples into as many parts",
            fix=f"use a multiple of {chunks}, or null",
        )
        require(
            self.cluster.device == "cuda" or not self.precision.transformer_engine,
            "precision.transformer_engine = true",
            rule="TransformerEngine runs on CUDA devices only and cluster.device is cpu",
            fix="set precision.transformer_engine=false",
        )
        require(
            self.cluster.device == "cuda" or self.moe.dispatcher != "flex",
            "moe.dispatcher = flex",
            rule="DeepEP's exchange runs on CUDA devices only and cluster.device is cpu",
            fix="set moe.dispatcher=alltoall",
        )
        require(
            self.precision.recompute != "selective"
            or "moe_act" not in self.precision.recompute_modules
            or self.moe.grouped_gemm,
            f"precision.recompute_modules = {list(self.precision.recompute_modules)}",
            rule="moe_act is a part of grouped experts, and moe.grouped_gemm = false",
            fix="leave moe_act out or set moe.grouped_gemm=true",
        )

        require(
            self.filters.length_capped != "mask_end" or self.preprocess.ids == "sampled",
            "filters.length_capped = mask_end",
            rule="counts in the ids as sampled, and preprocess.ids = retokenized has others",
            fix="set preprocess.ids=sampled, or filters.length_capped to keep or drop",
        )
        require(
            not self.regression.tasks or self.engine.backend == "vllm",
            f"regression.tasks = {list(self.regression.tasks)}",
            rule=f"lm-eval runs on engines of its own, and engine.backend = {self.engine.backend}",
            fix="set engine.backend=vllm for this stage, or regression.tasks=[]",
        )

    @property
    def trains_from_base(self) -> bool:
        """Whether training begins with the weights of ``model.path``, and not with random ones.

        Fine-tuning always does; pretraining goes on from a model where one is named.
        """
        return self.objective == "sft" or (self.model is not None and self.model.path is not None)

    @property
    def segment_multiple(self) -> int:
        """What the place of a sample in a packed row is rounded up to; 1 where rows are not packed."""
        if self.training.packing == "none":
            return 1
        return self.training.segment_multiple or self.parallel.context_chunks


def needed(section: _T | None, name: str, *, fix: str) -> _T:
    """The section, or a ``ConfigError`` that says that it was not named."""
    if section is None:
        raise ConfigError(f"{name} = null", rule=f"this stage needs {name}", fix=fix)
    return section
