//! tmp
#![allow(missing_docs)]
use std::collections::VecDeque;
#[derive(Debug, Default)]
pub struct Watermark {
    q: VecDeque<(i64, bool)>,
    base: u64,
    last: Option<i64>,
}
impl Watermark {
    pub fn deliver(&mut self, o: i64) -> u64 {
        self.q.push_back((o, false));
        self.last = Some(o);
        self.base + self.q.len() as u64 - 1
    }
    pub fn done(&mut self, t: u64) {
        let i = (t - self.base) as usize;
        self.q[i].1 = true;
        while let Some((_, true)) = self.q.front() {
            self.q.pop_front();
            self.base += 1;
        }
    }
    pub fn position(&self) -> Option<i64> {
        self.q.front().map(|x| x.0).or(self.last.map(|l| l + 1))
    }
}
