//! The arguments and the output of the Rust drivers. The package documentation of test/compat
//! describes them.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

/// The arguments of a driver, which have the form name=value.
pub struct Request(HashMap<String, String>);

/// A token and its expiry in seconds.
pub struct Token {
    pub token: String,
    pub expires_on: i64,
}

impl Request {
    pub fn from_arguments() -> Self {
        let pairs = std::env::args().skip(1);
        Self(pairs.filter_map(|a| a.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()))).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    #[allow(dead_code)] // object_store has a fixed resource
    pub fn scope(&self) -> String {
        format!("{}/.default", self.get("resource").unwrap_or_default())
    }

    /// Calls the library as often as requested and prints one line for each result.
    pub async fn run(&self, mut ask: impl AsyncFnMut() -> Result<Token, Box<dyn Error>>) {
        let number = |name: &str| self.get(name).and_then(|v| v.parse::<f64>().ok());
        for n in 0..number("calls").unwrap_or(1.0) as u32 {
            if n > 0 {
                tokio::time::sleep(Duration::from_secs_f64(number("pause").unwrap_or(0.0))).await;
            }
            let began = Instant::now();
            let line = match ask().await {
                Ok(t) => format!(r#""token":{},"expires_on":{}"#, quote(&t.token), t.expires_on),
                Err(e) => format!(r#""error":"Error","message":{}"#, quote(&chain(e.as_ref()))),
            };
            println!("{{{line},\"ms\":{:.1}}}", began.elapsed().as_secs_f64() * 1000.0);
        }
    }
}

/// An error and its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!("; {cause}");
        next = cause.source();
    }
    text
}

fn quote(s: &str) -> String {
    let escaped = s.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c < ' ' => " ".to_owned(),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}
