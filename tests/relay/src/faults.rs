//! What goes wrong between two ranks.

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The frame is lost.
    Drop,
    /// It arrives twice.
    Double,
    /// It is something else.
    Garble,
    /// From this frame on nothing passes, in either direction.
    Cut,
}

/// A fault in what a rank says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) what: What,
    pub(crate) rank: usize,
    /// Which of its frames, from 1.
    pub(crate) frame: u64,
}

impl Fault {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [what, rank, frame] = parts[..] else {
            return Err("not WHAT:RANK:FRAME".to_owned());
        };
        let what = match what {
            "drop" => What::Drop,
            "double" => What::Double,
            "garble" => What::Garble,
            "cut" => What::Cut,
            _ => return Err("not drop, double, garble or cut".to_owned()),
        };
        Ok(Self {
            what,
            rank: rank.parse().map_err(|_| "not a rank".to_owned())?,
            frame: frame.parse().map_err(|_| "not a number".to_owned())?,
        })
    }
}
