//! Lists one folder of a remote store, for commands that look at what is there.

use super::{Store, StoreError, client, glob, listing};

/// Files and folders directly in a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// URLs of the files, with their sizes in bytes, by name.
    pub files: Vec<(String, u64)>,
    /// URLs of the folders, without a final `/`, by name.
    pub folders: Vec<String>,
}

impl Store {
    /// Lists the files and folders directly in a folder of a remote store.
    ///
    /// # Errors
    /// When the URL is malformed or the store refuses the listing; web servers have none.
    pub async fn browse(&self, url: &str) -> Result<Contents, StoreError> {
        if url.starts_with("http") {
            let reason = "a web server has no listing; name its files".to_owned();
            return Err(StoreError::BadPattern { pattern: client::redact(url).to_owned(), reason });
        }
        let (client, key) = self.clients.client_for(url)?;
        let location = glob::remote_location(&client, key)?;
        let listed = Box::pin(listing::list_folder(&client, url, &location)).await?;
        let files = listed.objects.iter().map(|meta| (client.url(&meta.location), meta.size));
        let folders = listed.folders.iter().map(|folder| client.url(folder));
        let (mut files, mut folders): (Vec<_>, Vec<_>) = (files.collect(), folders.collect());
        files.sort_unstable();
        folders.sort_unstable();
        Ok(Contents { files, folders })
    }
}
