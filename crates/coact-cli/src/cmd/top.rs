//! `coact top`: what is held, waited for, led, used and served, again and again.

mod collect;

use clap::Args;
use coact::Result;

use crate::{
    Target,
    cmd::again::{Again, table},
    exit::Exit,
};
use collect::{Collector, Picture};

/// Arguments of `coact top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    again: Again,
    /// How many rows of each kind a table shows; JSON has them all.
    #[arg(long, default_value_t = 10, value_name = "N")]
    rows: usize,
    #[command(flatten)]
    target: Target,
}

impl Top {
    pub(crate) async fn run(self) -> Result<Exit> {
        let kv = self.target.open().await?;
        let mut collector = Collector::new(&kv, self.target.realm()?)?;
        let page = |picture: &Picture| self.page(picture);
        self.again.show(&self.target, async || collector.look().await, Picture::to_json, page).await?;
        Ok(Exit::SUCCESS)
    }

    fn page(&self, picture: &Picture) -> String {
        let sections = picture.sections().into_iter().filter(|(_, rows)| !rows.is_empty());
        let mut page: String = sections.map(|(_, rows)| table(rows, self.rows)).collect();
        for note in &picture.notes {
            page += &format!("{note}\n");
        }
        if page.is_empty() {
            page += "nothing is held, led or served\n\n";
        }
        page
    }
}
