//! The program's own kernels (`*.cu` below `src`), compiled by NVRTC and run on an emulated card, against plain sums.
//!
//! `CARD_TOOLKIT` names a folder that `toolkit.sh` made; `EMUCUDA_SM` is the card, 90 by default. `run.sh` runs these tests; without a
//! toolkit they fail.

mod attention;
mod broken;
mod card;
mod head;
mod nvrtc;
mod product;
mod rows;
mod step;
mod values;
