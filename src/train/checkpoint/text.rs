//! Checkpoints of projection heads.

use std::path::Path;

use super::tensors::{self, NamedTensor, Tensor};
use super::{CheckpointError, HEAD_FILE, OPTIMIZER_FILE, Progress, load_state, save_tensors, verify_checksums};
use crate::train::text::{Parameter, TextHead, TextMap, TextState, parameter_shapes};

/// Tensors of a head that are not trained.
const STATISTICS: [&str; 3] = ["features.mean", "features.std", "text.mean"];
/// Tensors of the map of captions.
const TEXT_MAP: [&str; 2] = ["text.projection.weight", "text.projection.bias"];

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
    let parameters = || head.parameters.iter().zip(&shapes);
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
    save_head_tensors(dir, head, &moments, progress)
}

/// Saves a projection head that has no optimiser, since it was solved for in closed form.
///
/// # Errors
/// As [`super::save`].
pub fn save_text_head(dir: &Path, head: &TextHead, progress: &Progress) -> Result<(), CheckpointError> {
    save_head_tensors(dir, head, &[], progress)
}

fn save_head_tensors(
    dir: &Path,
    head: &TextHead,
    optimizer: &[NamedTensor<'_>],
    progress: &Progress,
) -> Result<(), CheckpointError> {
    let stored = |parameter: &Parameter| stored_shape(parameter.name, parameter.shape);
    let shapes: Vec<Vec<usize>> = head.parameters.iter().map(stored).collect();
    let rows = [[head.input], [head.input], [head.text_mean.len()]];
    let statistics = [&head.feature_mean, &head.feature_std, &head.text_mean];
    let parameters = head.parameters.iter().zip(&shapes);
    let mut tensors: Vec<NamedTensor<'_>> =
        parameters.map(|(parameter, shape)| (parameter.name, shape.as_slice(), parameter.values.as_slice())).collect();
    let more = STATISTICS.iter().zip(&rows).zip(statistics);
    tensors.extend(more.map(|((name, row), values)| (*name, row.as_slice(), values.as_slice())));
    let map_shapes = [vec![head.output, head.text_mean.len()], vec![head.output]];
    if let Some(map) = &head.text_map {
        let values = [map.weight.as_slice(), map.bias.as_slice()];
        let more = TEXT_MAP.iter().zip(&map_shapes).zip(values);
        tensors.extend(more.map(|((name, shape), values)| (*name, shape.as_slice(), values)));
    }
    save_tensors(dir, &tensors, optimizer, &Progress { columns: head.columns, ..progress.clone() })
}

/// Loads the checkpoint of a projection head.
///
/// # Errors
/// As [`super::load`].
pub fn load_text(dir: &Path) -> Result<(TextState, Progress), CheckpointError> {
    let (progress, checksums) = load_state(dir)?;
    verify_checksums(dir, checksums.iter())?;
    let head = read_head(&dir.join(HEAD_FILE))?.with_columns(progress.columns);
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
    let (progress, checksums) = load_state(dir)?;
    verify_checksums(dir, checksums.iter().filter(|(file, _)| *file == HEAD_FILE))?;
    Ok(read_head(&dir.join(HEAD_FILE))?.with_columns(progress.columns))
}

/// Reads the file of a head.
fn read_head(path: &Path) -> Result<TextHead, CheckpointError> {
    // The tensors in the file decide whether there is a hidden layer, or a map of captions.
    read_layers(path, false, false).or_else(|error| match error {
        CheckpointError::Content { .. } => {
            read_layers(path, true, false).or_else(|_| read_layers(path, false, true)).map_err(|_| error)
        }
        other => Err(other),
    })
}

/// Reads a head with or without a hidden layer, and with or without a map of captions.
fn read_layers(path: &Path, with_hidden: bool, with_map: bool) -> Result<TextHead, CheckpointError> {
    let shapes = parameter_shapes(1, usize::from(with_hidden), 1).into_iter();
    let names: Vec<&str> = shapes.map(|(name, _)| name).chain(STATISTICS).collect();
    let parameters = names.len() - STATISTICS.len();
    let names: Vec<&str> = names.into_iter().chain(TEXT_MAP.into_iter().filter(|_| with_map)).collect();
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
        let text = if with_map { matrix(parameters + STATISTICS.len())?.1 } else { output };
        let stored = parameter_shapes(input, hidden, output).into_iter().map(|(name, shape)| stored_shape(name, shape));
        let map = [vec![output, text], vec![output]].into_iter().filter(|_| with_map);
        let expected = stored.chain([vec![input], vec![input], vec![text]]).chain(map);
        if shapes.iter().zip(expected).all(|(one, other)| **one == *other) { Ok(()) } else { Err(mismatch()) }
    };
    let mut tensors = tensors::read(path, &names, check)?;
    let (input, hidden, output) = sizes;
    let mut statistics = tensors.split_off(parameters).into_iter().map(|tensor| tensor.values);
    let mut next = || statistics.next().unwrap_or_default();
    let (feature_mean, feature_std, text_mean) = (next(), next(), next());
    let text_map = with_map.then(|| TextMap { weight: next(), bias: next() });
    let parameter = |((name, shape), tensor): ((&'static str, [usize; 2]), Tensor)| Parameter {
        name,
        shape,
        values: tensor.values,
    };
    let parameters = parameter_shapes(input, hidden, output).into_iter().zip(tensors).map(parameter).collect();
    let columns = None;
    Ok(TextHead { input, columns, hidden, output, feature_mean, feature_std, text_mean, text_map, parameters })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::text::Columns;

    #[test]
    fn head_in_closed_form_round_trips_without_an_optimiser() {
        let dir = tempfile::tempdir().unwrap();
        let maps = [None, Some(TextMap { weight: vec![0.25; 2 * 3], bias: vec![1.0, -1.0] })];
        for (number, map) in maps.into_iter().enumerate() {
            let output = if map.is_some() { 2 } else { 3 };
            let weight = (0..output * 4).map(|at| at as f32 / 8.0).collect();
            let head = TextHead::from_weight([vec![0.5; 4], vec![2.0; 4], vec![0.1; 3]], weight, map, 20.0);
            let path = dir.path().join(number.to_string());
            save_text_head(&path, &head, &Progress::default()).unwrap();
            assert_eq!(load_text_head(&path).unwrap(), head);
            let part = head.clone().with_columns(Some(Columns { first: 4, of: 12 }));
            save_text_head(&path, &part, &Progress::default()).unwrap();
            assert_eq!(load_text_head(&path).unwrap(), part);
            assert!((head.scale() - 20.0).abs() < 1e-4);
            let vectors = head.map_captions(vec![0.1, 1.1, 0.1, 3.1, 0.1, 0.1]);
            assert_eq!(vectors.len(), 2 * output);
            assert!(
                vectors
                    .chunks(output)
                    .all(|row| (row.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5)
            );
        }
    }

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
