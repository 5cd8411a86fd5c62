//! The commands that the documentation tells people to run.

/// The blocks of commands that a section of a page has before its first subsection.
pub fn commands(page: &str, section: &str) -> Vec<String> {
    let text = page
        .split_once(&format!("\n{section}\n"))
        .expect("the section is there")
        .1;
    let text = text.split("\n#").next().unwrap();
    let blocks = text.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}
