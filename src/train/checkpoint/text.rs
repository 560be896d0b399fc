//! Checkpoints of projection heads.

use std::path::Path;

use super::tensors::{self, NamedTensor, Tensor};
use super::{CheckpointError, HEAD_FILE, OPTIMIZER_FILE, Progress, load_state, save_tensors, verify_checksums};
use crate::train::text::{Parameter, TextHead, TextState, parameter_shapes};

/// Tensors of a head that are not trained.
const STATISTICS: [&str; 3] = ["features.mean", "features.std", "text.mean"];

/// Returns the name of a moment, as in a `torch.optim.AdamW` state.
fn moment_name(name: &str, second: bool) -> String {
    format!("{name}.{}", if second { "exp_avg_sq" } else { "exp_avg" })
}

/// Returns the shape of a parameter in its file: a bias is `[n]`, the scale is a scalar.
fn stored_shape(name: &str, shape: [usize; 2]) -> Vec<usize> {
    match name {
        "logit_scale" => Vec::new(),
        name if name.ends_with("bias") => vec![shape[1]],
        _ => shape.to_vec(),
    }
}

/// Saves a projection head and its optimiser to directory `dir`, like [`super::save`].
///
/// # Errors
/// As [`super::save`].
pub fn save_text(dir: &Path, state: &TextState, progress: &Progress) -> Result<(), CheckpointError> {
    let head = &state.head;
    let shapes: Vec<Vec<usize>> =
        head.parameters.iter().map(|parameter| stored_shape(parameter.name, parameter.shape)).collect();
    let rows = [[head.input], [head.input], [head.output]];
    let statistics = [&head.feature_mean, &head.feature_std, &head.text_mean];
    let parameters = || head.parameters.iter().zip(&shapes);
    let mut tensors: Vec<NamedTensor<'_>> = parameters()
        .map(|(parameter, shape)| (parameter.name, shape.as_slice(), parameter.values.as_slice()))
        .collect();
    let more = STATISTICS.iter().zip(&rows).zip(statistics);
    tensors.extend(more.map(|((name, row), values)| (*name, row.as_slice(), values.as_slice())));
    let names: Vec<(String, String)> = head
        .parameters
        .iter()
        .map(|parameter| (moment_name(parameter.name, false), moment_name(parameter.name, true)))
        .collect();
    let moments = parameters().zip(&names).zip(state.first.iter().zip(&state.second));
    let moments: Vec<NamedTensor<'_>> = moments
        .flat_map(|(((_, shape), (one, other)), (first, second))| {
            [(one.as_str(), shape.as_slice(), first.as_slice()), (other.as_str(), shape.as_slice(), second.as_slice())]
        })
        .collect();
    save_tensors(dir, &tensors, &moments, progress)
}

/// Loads the checkpoint of a projection head.
///
/// # Errors
/// As [`super::load`].
pub fn load_text(dir: &Path) -> Result<(TextState, Progress), CheckpointError> {
    let (progress, checksums) = load_state(dir)?;
    verify_checksums(dir, checksums.iter())?;
    let head = read_head(&dir.join(HEAD_FILE))?;
    let names: Vec<String> = head
        .parameters
        .iter()
        .flat_map(|parameter| [moment_name(parameter.name, false), moment_name(parameter.name, true)])
        .collect();
    let expected: Vec<Vec<usize>> =
        head.parameters.iter().map(|parameter| stored_shape(parameter.name, parameter.shape)).collect();
    let path = dir.join(OPTIMIZER_FILE);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let check = |shapes: &[&[usize]]| {
        let same = shapes.iter().zip(expected.iter().flat_map(|shape| [shape, shape])).all(|(one, other)| one == other);
        if same { Ok(()) } else { Err("its shapes are not those of the head".to_owned()) }
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (at, tensor) in tensors::read(&path, &names, check)?.into_iter().enumerate() {
        if at % 2 == 0 { first.push(tensor.values) } else { second.push(tensor.values) }
    }
    Ok((TextState { head, first, second }, progress))
}

/// Loads the projection head without its optimiser, for prediction.
///
/// # Errors
/// As [`super::load_head`].
pub fn load_text_head(dir: &Path) -> Result<TextHead, CheckpointError> {
    let (_, checksums) = load_state(dir)?;
    verify_checksums(dir, checksums.iter().filter(|(file, _)| *file == HEAD_FILE))?;
    read_head(&dir.join(HEAD_FILE))
}

/// Reads the file of a head.
fn read_head(path: &Path) -> Result<TextHead, CheckpointError> {
    // The tensors in the file decide whether there is a hidden layer.
    read_layers(path, false).or_else(|error| match error {
        CheckpointError::Content { .. } => read_layers(path, true).map_err(|_| error),
        other => Err(other),
    })
}

/// Reads a head with or without a hidden layer.
fn read_layers(path: &Path, with_hidden: bool) -> Result<TextHead, CheckpointError> {
    let names: Vec<&str> =
        parameter_shapes(1, usize::from(with_hidden), 1).into_iter().map(|(name, _)| name).chain(STATISTICS).collect();
    let mut sizes = (0, 0, 0);
    let check = |shapes: &[&[usize]]| {
        let mismatch = || "its shapes do not match".to_owned();
        let matrix = |at: usize| match shapes[at] {
            &[rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
            _ => Err(mismatch()),
        };
        let (first, last) = (matrix(0)?, matrix(if with_hidden { 2 } else { 0 })?);
        sizes = (first.1, if with_hidden { first.0 } else { 0 }, last.0);
        let (input, hidden, output) = sizes;
        let parameters =
            parameter_shapes(input, hidden, output).into_iter().map(|(name, shape)| stored_shape(name, shape));
        let expected = parameters.chain([vec![input], vec![input], vec![output]]);
        if shapes.iter().zip(expected).all(|(one, other)| **one == *other) { Ok(()) } else { Err(mismatch()) }
    };
    let mut tensors = tensors::read(path, &names, check)?;
    let (input, hidden, output) = sizes;
    let mut statistics = tensors.split_off(tensors.len() - STATISTICS.len()).into_iter().map(|tensor| tensor.values);
    let mut next = || statistics.next().unwrap_or_default();
    let (feature_mean, feature_std, text_mean) = (next(), next(), next());
    let parameter = |((name, shape), tensor): ((&'static str, [usize; 2]), Tensor)| Parameter {
        name,
        shape,
        values: tensor.values,
    };
    let parameters = parameter_shapes(input, hidden, output).into_iter().zip(tensors).map(parameter).collect();
    Ok(TextHead { input, hidden, output, feature_mean, feature_std, text_mean, parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projection_head_round_trips_and_damage_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        for hidden in [0, 5] {
            let statistics = [vec![0.5; 4], vec![2.0; 4], vec![0.1; 3]];
            let mut state = TextState::new(TextHead::init(statistics, hidden, 9));
            state.first[0][1] = 0.25;
            state.second[1][0] = 1e-9;
            let path = dir.path().join(format!("step-{hidden}"));
            let progress = Progress { step: 7, loss_sum: 0.1, ..Progress::default() };
            save_text(&path, &state, &progress).unwrap();
            assert_eq!(load_text(&path).unwrap(), (state.clone(), progress));
            assert_eq!(load_text_head(&path).unwrap(), state.head);
            assert!(super::super::load(&path).unwrap_err().to_string().contains("it holds the tensors"));
            let file = path.join(HEAD_FILE);
            let mut bytes = std::fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&file, bytes).unwrap();
            assert!(load_text_head(&path).unwrap_err().to_string().contains("its checksum differs"));
        }
    }
}
