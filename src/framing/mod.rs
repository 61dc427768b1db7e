//! Files of frames: batches encoded straight into commit buffers, and the scanner driven over a file.
//!
//! One framing layer serves segments, record logs and checkpoints. It neither decides what is torn (that
//! is [`formats::scan`](crate::formats::scan)) nor when a file is created, sealed or cut.

mod again;
mod batch;
mod peek;
mod pending;
mod reader;

pub use again::{Region, write_again};
pub use batch::{Batch, Control, control_commit, header_commit, push_control, reserve};
pub use peek::Peek;
pub use pending::{FrameSink, Pending};
pub use reader::{Frame, FrameReader, HeaderRead, read_header};
