//! `edgellm convert`: a folder of another format to a GGUF file.

use crate::args::ConvertArgs;
use crate::failure::Failure;
use crate::interrupt;
use edgellm::convert::{Comparison, Direction, Report, Scales, Stage};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;

/// Magnitudes of ternary weights that are plausible: every known model's are inside.
const PLAUSIBLE: std::ops::RangeInclusive<f32> = 0.01..=3.0;

/// Runs the command.
pub fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    interrupt::install_stop()?;
    let mut bar = Bar { bar: ProgressBar::hidden(), stage: None };
    let report = edgellm::convert::convert(&args.folder, &args.out, &args.options(), &mut |stage, done, total| {
        bar.report(stage, done, total);
        !interrupt::stopped()
    });
    bar.bar.finish_and_clear();
    let report = match report {
        Err(edgellm::Error::Cancelled) => return Err(Failure::new("stopped: no file was written")),
        report => report?,
    };
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{}", lines(args, &report))?;
    stdout.flush()?;
    if !report.written() {
        let text = "the file does not say what the folder says, so it was not written (without --verify it would be)";
        return Err(Failure::new(text));
    }
    Ok(())
}

/// The progress on a terminal's stderr; nothing where there is none.
struct Bar {
    bar: ProgressBar,
    stage: Option<Stage>,
}

impl Bar {
    fn report(&mut self, stage: Stage, done: u64, total: u64) {
        if self.stage != Some(stage) {
            self.stage = Some(stage);
            self.bar.finish_and_clear();
            self.bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} % {eta}");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_message(match stage {
                Stage::Write => "writing",
                Stage::WriteUnrounded => "writing for comparison",
                Stage::Compare => "comparing",
            });
        }
        self.bar.set_position(done);
    }
}

fn lines(args: &ConvertArgs, report: &Report) -> String {
    let mut lines = String::new();
    if report.written() {
        lines += &format!("{}: {}, {} bytes\n", args.out.display(), report.architecture, report.bytes);
    }
    let Some(comparison) = &report.comparison else { return lines };
    lines + &report.scales.as_ref().map(scale_lines).unwrap_or_default() + &comparison_lines(comparison)
}

/// Both ways to read the scales: a person sees which one makes sense.
fn scale_lines(scales: &Scales) -> String {
    let line = |direction: Direction, how: &str| {
        let (low, high) = scales.magnitudes(direction);
        let chosen = if direction == scales.direction { "as config.json says" } else { "the other way" };
        let sane = if PLAUSIBLE.contains(&low) && PLAUSIBLE.contains(&high) { "" } else { "; 0.01 to 3 is usual" };
        format!("weights {how} weight_scale ({chosen}): |W| = {low:.4} to {high:.4}{sane}\n")
    };
    line(Direction::Multiply, "times") + &line(Direction::Divide, "over")
}

fn comparison_lines(comparison: &Comparison) -> String {
    let Comparison { positions, finite, difference_max, divergence_mean, same_top } = comparison;
    let mut lines = format!("compared over {positions} tokens with the folder's own numbers:\n");
    lines += &format!("largest difference of a logit   {difference_max:.6}\n");
    lines += &format!("mean divergence (KL)            {divergence_mean:.3e} nats\n");
    lines += &format!("same most likely token          {:.1} %\n", 100.0 * same_top);
    if !finite {
        lines += "some logits are not finite numbers\n";
    }
    lines
}
