"""Where tensors are kept: checked as in PopTorch, without effect on results."""

from __future__ import annotations

from .options_dict import OptionsDict
from .sub_options import require_type


class TensorLocationSettings(OptionsDict):
    """Settings for one kind of tensor (activations, weights, optimizer state, accumulators)."""

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        """Smallest tensor that may leave the chip."""
        require_type(min_elements, int, "minElementsForOffChip")
        self.createOrSet(minElementsForOffChip=min_elements)
        return self

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        """Smallest tensor that is split over replicas."""
        require_type(min_elements, int, "minElementsForReplicatedTensorSharding")
        self.createOrSet(minElementsForReplicatedTensorSharding=min_elements)
        return self

    def useOnChipStorage(self, use: bool = True) -> TensorLocationSettings:
        """Keep the tensors on chip; None leaves it to the compiler."""
        if use is None:
            self.deleteIfExists("onChip")
        else:
            require_type(use, bool, "useOnChipStorage")
            self.createOrSet(onChip=int(use))
        return self

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        """Split the tensors over replicas."""
        require_type(use, bool, "useReplicatedTensorSharding")
        self.createOrSet(useReplicatedTensorSharding=int(use))
        return self

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        """Load through the IO tiles."""
        require_type(use, bool, "useIOTilesToLoad")
        self.createOrSet(useIOTilesToLoad=int(use))
        return self

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        """Store through the IO tiles."""
        require_type(use, bool, "useIOTilesToStore")
        self.createOrSet(useIOTilesToStore=int(use))
        return self


class _TensorLocationOptions(OptionsDict):
    """Options.TensorLocations."""

    def numIOTiles(self, num_tiles: int) -> _TensorLocationOptions:
        """Tiles set aside for transfers, needed for overlapped input and output.

        Raises:
            AssertionError: not an even number from 32 to 192.
        """
        require_type(num_tiles, int, "numIOTiles")
        if not 32 <= num_tiles <= 192 or num_tiles % 2:
            raise AssertionError(f"numIOTiles must be an even number between 32 and 192. Got {num_tiles}")
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where activations are kept."""
        return self._set("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where weights are kept."""
        return self._set("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where the optimizer's state is kept."""
        return self._set("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where gradient accumulators are kept."""
        return self._set("location_accumulator", location)

    def _set(self, option: str, location: TensorLocationSettings) -> _TensorLocationOptions:
        require_type(location, TensorLocationSettings, option)
        self.createOrSet(**{option: location.toDict()})
        return self
