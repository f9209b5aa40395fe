// SPDX-License-Identifier: Apache-2.0
//! What the agent does wrong.

use crate::boot::Result;

/// The word of the kernel's command line.
const WORD: &str = "hostile=";

/// One way to be hostile. The names are the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every connection is refused, with a reason as long as a message can be, of control
    /// characters.
    OpenedWithNoise,
    /// An answer is announced as 4 GiB, and comes.
    AnswerTooLong,
    /// An answer ends in its middle, with the connection.
    AnswerTorn,
    /// An answer is something else.
    AnswerMistyped,
    /// An answer comes byte by byte, and has no end. So do those to the question whether the agent
    /// lives.
    AnswerEndless,
    /// Two answers to each request, the first before the request.
    AnswerTwice,
    /// An answer of the Task API is announced as more than can be.
    TasksTooLong,
    /// An answer of the Task API ends in its middle, with the connection.
    TasksTorn,
    /// Answers of the Task API are no messages.
    TasksMistyped,
    /// The Task API does not answer.
    TasksSilent,
    /// Answers to calls that nobody has made, without end.
    TasksFlood,
    /// Exits of what there is not, exits twice, exit codes that there are not; statistics that are
    /// none.
    Lies,
    /// Everything is answered with success, and nothing is done: no container runs, and the
    /// machine's size stays.
    Ignores,
    /// Everything that can be said without being asked, as fast as it goes: outputs, events, the
    /// console, hellos.
    Floods,
}

const ALL: [(&str, Mode); 14] = [
    ("opened-with-noise", Mode::OpenedWithNoise),
    ("answer-too-long", Mode::AnswerTooLong),
    ("answer-torn", Mode::AnswerTorn),
    ("answer-mistyped", Mode::AnswerMistyped),
    ("answer-endless", Mode::AnswerEndless),
    ("answer-twice", Mode::AnswerTwice),
    ("tasks-too-long", Mode::TasksTooLong),
    ("tasks-torn", Mode::TasksTorn),
    ("tasks-mistyped", Mode::TasksMistyped),
    ("tasks-silent", Mode::TasksSilent),
    ("tasks-flood", Mode::TasksFlood),
    ("lies", Mode::Lies),
    ("ignores", Mode::Ignores),
    ("floods", Mode::Floods),
];

impl Mode {
    /// The mode that the command line has.
    pub fn of(line: &str) -> Result<Self> {
        let word = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(WORD)).unwrap_or_default();
        let found = ALL.iter().find(|(name, _)| *name == word).map(|(_, mode)| *mode);
        found.ok_or_else(|| format!("{WORD}{word:?} is no mode").into())
    }
}
