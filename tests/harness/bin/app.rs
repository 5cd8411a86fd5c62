//! An app in a process of its own, so that it can be killed. Its standard output says what it saw: `port N` first, then
//! `asked LINE` for each request line and `ended` for each connection that ended before its answer did.
//!
//! The path chooses how much of an answer comes: of `/hang` nothing, of `/chunks` and `/length` the beginning.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    say(&format!("port {}", listener.local_addr()?.port()));
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || serve(stream));
    }
    Ok(())
}

/// One write per line, so that the lines of two connections don't mix.
fn say(line: &str) {
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(line) = read_head(&mut reader)? {
        say(&format!("asked {line}"));
        let begun = match line.split(' ').nth(1).unwrap_or_default() {
            "/hang" | "/upload" => "",
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun",
            _ => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")?;
                continue;
            }
        };
        stream.write_all(begun.as_bytes())?;
        // A reset is an end, too.
        let _ = reader.read_to_end(&mut Vec::new());
        say("ended");
        return Ok(());
    }
    Ok(())
}

/// The request line of the next request, of which the whole head has come.
fn read_head(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(head.lines().next().map(String::from))
}
