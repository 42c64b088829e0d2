//! The books: what is in the topic against what was sent, and what was handled against what is in the topic.

use std::collections::BTreeMap;

use super::input::Input;

/// A line as it is in the topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) number: usize,
    pub(super) time_ms: u64,
    /// The time before which it must not come, if it was delayed.
    pub(super) due_ms: Option<u64>,
}

/// Fed with a topic's lines, partition by partition, and then with what was handled, in order; the first contradiction is
/// an error.
pub(super) struct Ledger<'a> {
    input: &'a Input,
    /// Which lines were found.
    seen: Vec<bool>,
    /// Of each program, the newest line that was not delayed.
    newest: Vec<Option<usize>>,
    /// Of each program, how many lines there are.
    lines: Vec<usize>,
    /// Of each partition, in order: the offset, the program, and the line's place among those of the program.
    places: BTreeMap<u32, Vec<(u64, usize, usize)>>,
    lateness_ms: Vec<u64>,
    /// Of each program, the place after the one that was handled last, and after the newest that was handled.
    handled: Vec<(usize, usize)>,
    again: usize,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(input: &'a Input) -> Self {
        let programs = input.programs().len();
        Self {
            input,
            seen: vec![false; input.count()],
            newest: vec![None; programs],
            lines: vec![0; programs],
            places: BTreeMap::new(),
            lateness_ms: Vec::new(),
            handled: vec![(0, 0); programs],
            again: 0,
        }
    }

    /// The next line of a partition.
    pub(super) fn found(&mut self, partition: u32, offset: u64, line: Found) -> Result<(), String> {
        let Found { number, time_ms, due_ms } = line;
        match self.seen.get_mut(number) {
            None => return Err(format!("line {number} was never sent")),
            Some(seen) if *seen => return Err(format!("line {number} is in the topic twice")),
            Some(seen) => *seen = true,
        }
        let program = self.input.program(number);
        match due_ms {
            Some(due_ms) if time_ms < due_ms => {
                return Err(format!("line {number} came {} ms before it was due", due_ms - time_ms));
            }
            Some(due_ms) => self.lateness_ms.push(time_ms - due_ms),
            None => {
                if let Some(newest) = self.newest[program].filter(|newest| *newest > number) {
                    return Err(format!("line {number} came after line {newest} of the same program"));
                }
                self.newest[program] = Some(number);
            }
        }
        self.places.entry(partition).or_default().push((offset, program, self.lines[program]));
        self.lines[program] += 1;
        Ok(())
    }

    /// Every line must have been found.
    pub(super) fn all_found(&self) -> Result<(), String> {
        match self.seen.iter().position(|seen| !seen) {
            None => Ok(()),
            Some(lost) => Err(format!("line {lost} is not in the topic")),
        }
    }

    /// The next line that anybody handled. Those of a program are handled in order; after a consumer's end somebody goes
    /// back, to what had not been committed, and then on in order.
    pub(super) fn handled(&mut self, partition: u32, offset: u64) -> Result<(), String> {
        let unknown = || format!("what was handled at {partition}/{offset} is not in the topic");
        let places = self.places.get(&partition).ok_or_else(unknown)?;
        let at = places.binary_search_by_key(&offset, |(offset, ..)| *offset).map_err(|_| unknown())?;
        let (_, program, place) = places[at];
        let (next, newest) = &mut self.handled[program];
        if place > *next {
            let name = String::from_utf8_lossy(&self.input.programs()[program].name);
            return Err(format!("of {name}, line {place} was handled after line {}", *next as i64 - 1));
        }
        self.again += usize::from(place < *newest);
        *next = place + 1;
        *newest = (*newest).max(*next);
        Ok(())
    }

    /// Every line must have been handled.
    pub(super) fn all_handled(&self) -> Result<(), String> {
        let missing: usize = self.lines.iter().zip(&self.handled).map(|(lines, (_, newest))| lines - newest).sum();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} lines were not handled")) }
    }

    /// How many lines were handled another time.
    pub(super) fn again(&self) -> usize {
        self.again
    }

    /// How late delayed lines were, in milliseconds, the least first.
    pub(super) fn lateness_ms(mut self) -> Vec<u64> {
        self.lateness_ms.sort_unstable();
        self.lateness_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines 0, 2, 4 … are of one program, the others of another.
    fn input() -> Input {
        let text: String = (0..100).map(|line| format!("program-{}: {line}\n", line % 2)).collect();
        Input::of(text.clone().into(), text.len() as u64).expect("enough")
    }

    fn now(number: usize) -> Found {
        Found { number, time_ms: 1_000, due_ms: None }
    }

    fn delayed(number: usize, time_ms: u64, due_ms: u64) -> Found {
        Found { number, time_ms, due_ms: Some(due_ms) }
    }

    #[test]
    fn good_books_pass() {
        let input = input();
        let mut ledger = Ledger::new(&input);
        for number in 0..100 {
            ledger.found(number as u32 % 2, number as u64 / 2, now(number)).expect("good");
        }
        ledger.all_found().expect("all");
        for (partition, offset) in (0..50).map(|offset| (0, offset)).chain((0..50).map(|offset| (1, offset))) {
            ledger.handled(partition, offset).expect("good");
        }
        ledger.all_handled().expect("all");
        // A consumer that was killed had not committed the last ten.
        (40..50).for_each(|offset| ledger.handled(1, offset).expect("again, in order"));
        assert_eq!(ledger.again(), 10);
    }

    #[test]
    fn bad_books_are_found() {
        let input = input();
        let all_but = |lost: usize| {
            let mut ledger = Ledger::new(&input);
            for number in (0..100).filter(|number| *number != lost) {
                ledger.found(0, number as u64, now(number)).expect("good");
            }
            ledger
        };
        assert_eq!(all_but(7).all_found(), Err("line 7 is not in the topic".to_owned()));
        let found = |ledger: &mut Ledger<'_>, line| ledger.found(0, 200, line).expect_err("bad");
        assert!(found(&mut all_but(7), now(6)).contains("twice"));
        assert!(found(&mut all_but(7), now(7)).contains("came after line 99"));
        assert!(found(&mut all_but(7), now(100)).contains("never sent"));
        assert!(found(&mut all_but(7), delayed(7, 999, 1_000)).contains("1 ms before it was due"));
        let mut late = Ledger::new(&input);
        late.found(0, 0, delayed(2, 2_000, 1_000)).expect("good");
        late.found(0, 1, delayed(0, 2_000, 1_500)).expect("those of a program may change places");
        assert_eq!(late.lateness_ms(), [500, 1_000]);

        let mut skipped = all_but(7);
        skipped.handled(0, 0).expect("the first");
        assert!(skipped.handled(0, 4).expect_err("2 is left out").contains("line 2 was handled after line 0"));
        assert!(skipped.handled(0, 7).expect_err("it is not there").contains("0/7 is not in the topic"));
        assert_eq!(skipped.all_handled(), Err("98 lines were not handled".to_owned()));
    }
}
