pub mod chart;
pub mod look;
pub mod number;
pub mod table;
mod ticks;
